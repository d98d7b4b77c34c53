"""How onnxruntime's kernels add up products on the processor at hand, as the proof against overflow takes for granted.

With sums of 32 bits every result is exact. Without, each is exactly that of pairs, one weight of an even place with the
next one, cut off at 16 bits; depthwise convolutions are exact everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.backends.onnxruntime_cpu.kernel_order import kernel_order
from qtool.runtime.session import Session

_SCALE = np.float32(2.0**10)


def _layer(operator: str, shape: tuple[int, ...], weight: np.ndarray, **attributes: Any) -> Session:
    axis = 0 if operator == "Conv" else weight.ndim - 1
    count = weight.shape[axis]
    stored = {
        "one": np.float32(1.0),
        "zero": np.uint8(0),
        "w": weight,
        "ws": np.ones(count, np.float32),
        "wz": np.zeros(count, np.int8),
        "scale": _SCALE,
        "middle": np.uint8(128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node(operator, ["xd", "wd"], ["r"], **attributes),
        helper.make_node("QuantizeLinear", ["r", "scale", "middle"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "scale", "middle"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Session(model.SerializeToString(), threads=1)


def _sums(rows: np.ndarray, *, pairs: bool) -> np.ndarray:
    """Adds up what activations of 255 make of each row of weights, in the order of the kernel: (outputs,)."""
    products = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).astype(np.int64).reshape(len(rows), -1, 2) * 255
    added = products.sum(axis=2)
    return (np.clip(added, -32768, 32767) if pairs else added).sum(axis=1)


def _expected(sums: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(sums / float(_SCALE)), -128, 127) * float(_SCALE)


_WEIGHTS = {
    "convolution": ((16, 16, 3, 3), 1),
    "pointwise": ((16, 12, 1, 1), 1),
    "few channels": ((8, 3, 3, 3), 1),
    "odd channels": ((6, 5, 3, 3), 1),
    "odd in all": ((6, 7, 1, 1), 1),
    "groups": ((16, 4, 3, 3), 4),
    "two outputs a group": ((16, 1, 3, 3), 8),
    "one dimension": ((8, 6, 3), 1),
    "depthwise": ((16, 1, 3, 3), 16),
    "large depthwise": ((8, 1, 5, 5), 8),
    "odd depthwise": ((7, 1, 3, 3), 7),
    "depthwise in one dimension": ((8, 1, 3), 8),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", _WEIGHTS)
def test_convolutions_pair_weights_with_the_channel_running_fastest(kind: str, seed: int) -> None:
    shape, group = _WEIGHTS[kind]
    # Few of them, so that no sum leaves the grid.
    weight = np.random.default_rng(seed).choice([0, 0, 0, -90, 127, -127], shape).astype(np.int8)
    rank = len(shape) - 2
    x = np.full((1, shape[1] * group, *(6,) * rank), 255, np.float32)
    found = _layer("Conv", x.shape, weight, group=group).run({"x": x})["y"]
    pairs = sums_saturate() and "depthwise" not in kind
    sums = _sums(kernel_order("Conv", len(shape)).rows(weight), pairs=pairs)
    assert np.array_equal(found, np.broadcast_to(_expected(sums).reshape(1, -1, *(1,) * rank), found.shape))


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("inner", [2, 7, 16, 33])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_products_of_matrices_pair_weights_along_the_sum(operator: str, inner: int, rows: int) -> None:
    weight = np.random.default_rng(inner).choice([0, 0, -90, 127, -127], (inner, 24)).astype(np.int8)
    x = np.full((rows, inner), 255, np.float32)
    found = _layer(operator, x.shape, weight).run({"x": x})["y"]
    sums = _sums(kernel_order("MatMul", 2).rows(weight), pairs=sums_saturate())
    assert np.array_equal(found, np.broadcast_to(_expected(sums), found.shape))
