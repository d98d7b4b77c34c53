"""Models to split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
import pytest

Run: TypeAlias = Callable[..., Any]
Save: TypeAlias = Callable[..., Path]


@pytest.fixture
def split(run: Run) -> Run:
    """Runs ``qtool split`` into the folder ``parts`` and returns its JSON."""

    def call(*arguments: object) -> Any:
        result = run("split", *arguments, "-o", "parts", "--json")
        assert result.code == 0, result.err
        return result.json

    return call


@pytest.fixture
def network(save: Save) -> Path:
    """Three Conv in a row with a residual sum, then a Gemm."""
    generator = np.random.default_rng(3)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 1, 1), "w4": (5, 8), "b4": (5,)}
    return save(
        "net.onnx",
        """network (float[batch,3,8,8] image) => (float[batch,5] scores) {
            c1 = Conv <pads = [1,1,1,1]> (image, w1)
            r1 = Relu (c1)
            c2 = Conv <pads = [1,1,1,1]> (r1, w2)
            r2 = Relu (c2)
            c3 = Conv (r2, w3)
            s = Add (c3, r1)
            p = GlobalAveragePool (s)
            f = Flatten (p)
            scores = Gemm <transB = 1> (f, w4, b4)
        }""",
        **{name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()},
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty images."""
    path = tmp_path / "data.npz"
    np.savez(path, image=np.random.default_rng(4).normal(0, 1, (20, 3, 8, 8)).astype(np.float32))
    return path


@pytest.fixture
def run_by_hand() -> Callable[[Path, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Runs parts with onnxruntime alone, by what the manifest says."""

    def call(manifest: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        values = dict(feeds)
        for part in listed["parts"]:
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = ort.InferenceSession(
                str(manifest.parent / part["file"]), options, providers=["CPUExecutionProvider"]
            )
            assert [value.name for value in session.get_inputs()] == part["inputs"]
            made = session.run(part["outputs"], {name: values[name] for name in part["inputs"]})
            values |= dict(zip(part["outputs"], made, strict=True))
        return {name: values[name] for name in listed["outputs"]}

    return call
