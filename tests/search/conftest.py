"""A residual network with one layer that integers ruin, and data for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

_NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[batch,3,12,12] image) => (float[batch,10] logits)
{
    c1 = Conv <pads = [1,1,1,1]> (image, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1,1,1,1], group = 12> (r1, w2, b2)
    r2 = Relu (c2)
    c3 = Conv (r2, w3, b3)
    s = Add (c3, r1)
    r3 = Relu (s)
    c4 = Conv (r3, w4, b4)
    p = GlobalAveragePool (c4)
    f = Flatten (p)
    logits = Gemm <transB = 1> (f, w5, b5)
}
"""
_SHAPES = {
    "w1": (12, 3, 3, 3),
    "b1": (12,),
    "w2": (12, 1, 3, 3),
    "b2": (12,),
    "w3": (12, 12, 1, 1),
    "b3": (12,),
    "w4": (12, 12, 1, 1),
    "b4": (12,),
    "w5": (10, 12),
    "b5": (10,),
}
BAD = "net[0]/c3"


@pytest.fixture
def bad() -> str:
    """The name of the layer that integers ruin; as a pattern, its brackets would mean something else."""
    return BAD


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The network, as net.onnx; one input channel of c3 is always zero, and its weights are huge.

    They stretch the scale of every output channel, so that on integers all other weights of c3 become zero.
    """
    generator = np.random.default_rng(3)
    weights = {
        name: (generator.normal(0, 0.4, shape) * (0.3 if name.startswith("b") else 1.0)).astype(np.float32)
        for name, shape in _SHAPES.items()
    }
    weights["w2"][0], weights["b2"][0], weights["w3"][:, 0] = 0.0, 0.0, 500.0
    path = tmp_path / "net.onnx"
    weights["b5"] = np.zeros(10, np.float32)
    _save(path, weights)
    # On average no class is ahead, so that the images decide which one wins.
    weights["b5"] = -_logits(path, _images()).mean(axis=0)
    _save(path, weights)
    return path


@pytest.fixture
def data(tmp_path: Path, model: Path) -> Path:
    """Sixty images, labelled as the float model sees them, as calib.npz."""
    path = tmp_path / "calib.npz"
    np.savez(path, image=_images(), _label=_logits(model, _images()).argmax(axis=1))
    return path


def _images() -> np.ndarray:
    generator = np.random.default_rng(1)
    rough = generator.normal(0, 1, (60, 3, 6, 6)) + generator.normal(0, 1, (60, 3, 1, 1))
    return rough.astype(np.float32).repeat(2, axis=2).repeat(2, axis=3)


def _save(path: Path, weights: dict[str, np.ndarray]) -> None:
    proto = parser.parse_model(_NETWORK)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = f"net[0]/{node.output[0]}"
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _logits(path: Path, images: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path)).run(None, {"image": images})[0]
