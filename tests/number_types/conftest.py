"""A convolutional network, and samples for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper, parser

NETWORK = """
net (float[1,3,12,12] x) => (float[1,5] y)
{
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (c)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    d = Conv <kernel_shape = [3, 3]> (p, w2, b2)
    s = Sigmoid (d)
    m = Mul (d, s)
    t = Tanh (m)
    g = GlobalAveragePool (t)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, w3, b3)
}
"""
_SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (12, 8, 3, 3), "b2": (12,), "w3": (5, 12), "b3": (5,)}


def write_network(folder: Path, *, opset: int, ir_version: int) -> Path:
    """Writes the network as net.onnx, and 16 samples beside it as data.npz."""
    proto = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {NETWORK}')
    generator = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        array = (generator.standard_normal(shape) * 0.2).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, folder / "net.onnx")
    np.savez(folder / "data.npz", x=samples(16))
    return folder / "net.onnx"


def samples(count: int, seed: int = 1) -> npt.NDArray[np.float32]:
    """Returns inputs of the network, (count, 3, 12, 12)."""
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)
