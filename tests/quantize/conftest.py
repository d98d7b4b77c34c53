"""A small residual network, and data for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

_NETWORK = """
network (float[batch,3,16,16] image) => (float[batch,10] logits)
{
    c1 = Conv <pads = [1,1,1,1]> (image, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1,1,1,1], group = 16> (r1, w2, b2)
    r2 = Relu (c2)
    c3 = Conv (r2, w3, b3)
    s = Add (c3, r1)
    r3 = Relu (s)
    p = GlobalAveragePool (r3)
    f = Flatten (p)
    logits = Gemm <transB = 1> (f, w4, b4)
}
"""
_SHAPES = {
    "w1": (16, 3, 3, 3),
    "b1": (16,),
    "w2": (16, 1, 3, 3),
    "b2": (16,),
    "w3": (16, 16, 1, 1),
    "b3": (16,),
    "w4": (10, 16),
    "b4": (10,),
}


Save: TypeAlias = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> Save:
    """Writes the body of a graph with the given weights as an ONNX file; its nodes are called after their outputs."""

    def save(name: str, text: str, *, opset: int = 17, **tensors: np.ndarray) -> Path:
        proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
        proto.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in tensors.items())
        for node in proto.graph.node:
            node.name = f"/{node.output[0]}/{node.op_type}"
        onnx.checker.check_model(proto)
        path = tmp_path / name
        onnx.save(proto, path)
        return path

    return save


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """The network's weights, always the same."""
    generator = np.random.default_rng(5)
    return {
        name: (generator.normal(0, 0.35, shape) * (0.3 if name.startswith("b") else 1.0)).astype(np.float32)
        for name, shape in _SHAPES.items()
    }


@pytest.fixture
def model(save_model: Save, weights: dict[str, np.ndarray]) -> Path:
    """The float network, as net.onnx."""
    return save_model("net.onnx", _NETWORK, **weights)


@pytest.fixture
def network_text() -> str:
    """The network's graph, for tests that change its weights."""
    return _NETWORK


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty images with smooth content, as calib.npz."""
    path = tmp_path / "calib.npz"
    np.savez(path, image=images(40))
    return path


def images(count: int, seed: int = 1) -> np.ndarray:
    """Returns noise that neighbouring pixels share."""
    rough = np.random.default_rng(seed).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)
    return rough.repeat(2, axis=2).repeat(2, axis=3)


@pytest.fixture
def make_images() -> Callable[..., np.ndarray]:
    """Makes more images."""
    return images
