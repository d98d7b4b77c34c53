"""Small graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

Run: TypeAlias = Callable[..., Any]
Save: TypeAlias = Callable[..., Path]


@pytest.fixture
def facts(run: Run) -> Run:
    """Runs ``qtool inspect`` and returns its JSON."""

    def call(*arguments: object) -> Any:
        result = run("inspect", *arguments, "--json")
        assert result.code == 0, result.err
        return result.json

    return call


@pytest.fixture
def network(save: Save) -> Path:
    """Two Conv with a Relu between them on ``image`` (batch, 3, 8, 8), whose sum with a third one is pooled."""
    generator = np.random.default_rng(3)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 3, 1, 1), "w4": (5, 8), "b4": (5,)}
    weights = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    return save(
        "net.onnx",
        """network (float[batch,3,8,8] image) => (float[batch,5] scores) {
            c1 = Conv <pads = [1,1,1,1]> (image, w1)
            r1 = Relu (c1)
            c2 = Conv <pads = [1,1,1,1]> (r1, w2)
            c3 = Conv (image, w3)
            s = Add (c2, c3)
            p = GlobalAveragePool (s)
            f = Flatten (p)
            scores = Gemm <transB = 1> (f, w4, b4)
        }""",
        **weights,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty images."""
    path = tmp_path / "data.npz"
    np.savez(path, image=np.random.default_rng(4).normal(0, 1, (20, 3, 8, 8)).astype(np.float32))
    return path
