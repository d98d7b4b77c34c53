"""Layers on 64-bit ARM add up products of 8-bit integers without overflow, with dot products and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.arm.emulated_runtime import EmulatedRuntime

_S8, _U8 = np.dtype(np.int8), np.dtype(np.uint8)
# A power of two: products of scales are exact in float32, and nothing is rounded before the last step.
_SCALE_OUT = 2.0**8


def test_the_machines_are_of_arm_and_run_the_version_that_is_tested(machine: EmulatedRuntime, root: Any) -> None:
    assert machine.runtime.machine == "aarch64"
    assert f"onnxruntime=={machine.runtime.version}\n" in (root / "constraints.txt").read_text(encoding="utf-8")


def _layer(operator: str, x: np.ndarray, weights: np.ndarray, dtype: Any, **attributes: Any) -> bytes:
    """A layer between Q and DQ whose inputs are integers already."""
    axis = 0 if operator == "Conv" else 1
    count = weights.shape[axis]
    stored = {
        "one": np.float32(1.0),
        "zero": np.asarray(0, dtype),
        "w": weights,
        "w_scale": np.ones(count, np.float32),
        "w_zero": np.zeros(count, weights.dtype),
        "y_scale": np.float32(_SCALE_OUT),
        "y_zero": np.asarray(0 if dtype == _S8 else 128, dtype),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=axis),
        node(operator, ["xd", "wd"], ["r"], "layer", **attributes),
        node("QuantizeLinear", ["r", "y_scale", "y_zero"], ["rq"]),
        node("DequantizeLinear", ["rq", "y_scale", "y_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _exact(operator: str, x: np.ndarray, weights: np.ndarray, group: int) -> np.ndarray:
    """The sums, in 64-bit integers."""
    if operator != "Conv":
        return np.asarray(x.astype(np.int64) @ weights.astype(np.int64))
    outputs, inner, rows, columns = weights.shape
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.int64), (rows, columns), axis=(2, 3))
    sums = []
    for output in range(outputs):
        first = output // (outputs // group) * inner
        sums.append(np.einsum("nchwij,cij->nhw", windows[:, first : first + inner], weights[output].astype(np.int64)))
    return np.stack(sums, axis=1)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("dtype", [_S8, _U8], ids=str)
@pytest.mark.parametrize("operator", ["Conv", "pointwise Conv", "depthwise Conv", "MatMul", "Gemm"])
def test_sums_are_those_of_whole_numbers(
    machine: EmulatedRuntime, operator: str, dtype: np.dtype[Any], extreme: bool
) -> None:
    rng = np.random.default_rng(3)
    group = 1
    if operator.endswith("Conv"):
        side = 1 if operator.startswith("pointwise") else 3
        group = 16 if operator.startswith("depthwise") else 1
        shape, form = (16, 16 // group, side, side), (1, 16, 9, 9)
    else:
        shape, form = (96, 24), (5, 96)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if extreme:
        # The products of all neighbours are as large as they get, and of one sign.
        signs = rng.choice([-1, 1], shape[:1] if len(shape) == 4 else shape[1:])
        weights = np.full(shape, 127) * (signs.reshape(-1, 1, 1, 1) if len(shape) == 4 else signs)
        x = np.full(form, low if dtype == _S8 else high)
    else:
        weights, x = rng.integers(-127, 128, shape), rng.integers(low, high + 1, form)
    kind = operator.split()[-1]
    given = {"group": group} if kind == "Conv" else {}
    weights = weights.astype(np.int8)
    (found,) = machine.run(_layer(kind, x, weights, dtype, **given), {"x": x.astype(np.float32)}).values()
    zero = 0 if dtype == _S8 else 128
    steps = np.clip(np.rint(_exact(kind, x, weights, group) / _SCALE_OUT) + zero, low, high)
    np.testing.assert_array_equal(found, (steps - zero) * _SCALE_OUT)


def test_the_layers_run_in_integer_kernels(machine: EmulatedRuntime, tmp_path: Any) -> None:
    weights = np.ones((4, 4, 3, 3), np.int8)
    machine.optimize(_layer("Conv", np.zeros((1, 4, 6, 6)), weights, _S8), tmp_path / "optimized.onnx", "extended")
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
