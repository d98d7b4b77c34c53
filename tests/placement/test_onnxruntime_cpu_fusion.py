"""Pins what onnxruntime's CPU provider makes of Q/DQ patterns: the facts that the placement stands on.

Each test opens one small graph and reads the operators off the graph that onnxruntime rewrote. When one of these fails
with a new onnxruntime, the table in ``qtool/placement/operators.py`` has to change, not the test alone.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.errors import RuntimeRefusedError
from qtool.runtime.session import Level, Session

_U8, _S8 = np.dtype(np.uint8), np.dtype(np.int8)
_FLOAT_LEFTOVERS = {"QuantizeLinear", "DequantizeLinear"}


class Pattern:
    """Builds a graph of Q/DQ pairs node by node; every method returns the name of a tensor."""

    def __init__(self, opset: int = 13) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def _new(self, stem: str) -> str:
        return f"{stem}_{len(self.nodes) + len(self.initializers)}"

    def constant(self, array: npt.NDArray[Any] | np.generic) -> str:
        name = self._new("constant")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def input(self, *shape: int | str) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.nodes_of(operator, *inputs, outputs=1, **attributes)[0]

    def nodes_of(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        name = self._new(operator)
        names = [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))
        return names

    def pair(self, tensor: str, *, scale: float = 0.05, zero_point: int = 128, dtype: np.dtype[Any] = _U8) -> str:
        """Q then DQ."""
        parameters = self.constant(np.float32(scale)), self.constant(np.array(zero_point, dtype))
        quantized = self.node("QuantizeLinear", tensor, *parameters)
        return self.node("DequantizeLinear", quantized, *parameters)

    def weight(self, *shape: int, axis: int | None = None, dtype: np.dtype[Any] = _S8, zero_point: int = 0) -> str:
        """DQ of stored integers, with one scale or one an index along ``axis``."""
        rng = np.random.default_rng(sum(shape))
        low = 0 if dtype == _U8 else -127
        integers = self.constant(rng.integers(low, low + 255, shape).astype(dtype))
        if axis is None:
            parameters = self.constant(np.float32(0.01)), self.constant(np.array(zero_point, dtype))
            return self.node("DequantizeLinear", integers, *parameters)
        scales = self.constant(np.linspace(0.01, 0.02, shape[axis], dtype=np.float32))
        zeros = self.constant(np.full(shape[axis], zero_point, dtype))
        return self.node("DequantizeLinear", integers, scales, zeros, axis=axis)

    def bias(self, channels: int, *, input_scale: float = 0.05, per_channel: bool = True) -> str:
        """DQ of int32 on the scale of the products, without a zero point."""
        integers = self.constant(np.arange(channels, dtype=np.int32) * 50)
        if not per_channel:
            return self.node("DequantizeLinear", integers, self.constant(np.float32(input_scale * 0.01)))
        scales = np.float32(input_scale) * np.linspace(0.01, 0.02, channels, dtype=np.float32)
        return self.node("DequantizeLinear", integers, self.constant(scales.astype(np.float32)), axis=0)

    def output(self, tensor: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))

    def model(self) -> bytes:
        graph = helper.make_graph(self.nodes, "pattern", self.inputs, self.outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return bytes(model.SerializeToString())

    def optimized(self, folder: Path, level: Level = "extended") -> Counter[str]:
        """Returns the operators that are left once onnxruntime has rewritten the graph."""
        path = folder / "optimized.onnx"
        Session(self.model(), threads=1, level=level, optimized_to=path)
        return Counter(node.op_type for node in onnx.load(path).graph.node)

    def kernels(self, folder: Path, level: Level = "extended") -> dict[str, int]:
        """As ``optimized``, without the Q and DQ at the ends."""
        return {name: n for name, n in self.optimized(folder, level).items() if name not in _FLOAT_LEFTOVERS}


def _conv(
    *spatial: int,
    channels: int = 4,
    group: int = 1,
    per_channel: bool = True,
    bias: bool = True,
    activations: np.dtype[Any] = _U8,
    weights: np.dtype[Any] = _S8,
) -> Pattern:
    pattern = Pattern()
    zero = 128 if activations == _U8 else 0
    x = pattern.pair(pattern.input(1, channels, *spatial), zero_point=zero, dtype=activations)
    kernel = [3] * len(spatial)
    w = pattern.weight(
        channels,
        channels // group,
        *kernel,
        axis=0 if per_channel else None,
        dtype=weights,
        zero_point=0 if weights == _S8 else 128,
    )
    inputs = [x, w] + ([pattern.bias(channels, per_channel=per_channel)] if bias else [])
    y = pattern.node("Conv", *inputs, kernel_shape=kernel, group=group)
    pattern.output(pattern.pair(y, scale=0.1, zero_point=zero, dtype=activations))
    return pattern


@pytest.mark.parametrize("level", ["extended", "all"])
@pytest.mark.parametrize("spatial", [(9,), (9, 9), (5, 6, 7)])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_convolutions_of_every_kind_run_on_integers(
    tmp_path: Path, spatial: tuple[int, ...], group: int, level: Level
) -> None:
    kernels = _conv(*spatial, group=group).kernels(tmp_path, level)
    assert kernels.pop("QLinearConv") == 1
    # At the highest level the channels may move to the end for the kernel.
    assert set(kernels) <= {"Transpose"}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("activations", "weights"), [(_U8, _S8), (_U8, _U8), (_S8, _S8)])
def test_convolutions_of_every_type_run_on_integers(
    tmp_path: Path, per_channel: bool, bias: bool, activations: np.dtype[Any], weights: np.dtype[Any]
) -> None:
    pattern = _conv(7, 7, per_channel=per_channel, bias=bias, activations=activations, weights=weights)
    assert pattern.kernels(tmp_path) == {"QLinearConv": 1}


def test_fusion_needs_the_extended_level(tmp_path: Path) -> None:
    assert _conv(7, 7).kernels(tmp_path, "basic") == {"Conv": 1}


def test_a_convolution_without_a_quantized_output_stays_float(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    pattern.output(pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0)))
    assert pattern.kernels(tmp_path) == {"Conv": 1}


def test_a_second_float_reader_keeps_a_convolution_float(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    y = pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0))
    pattern.output(pattern.pair(y))
    pattern.output(pattern.node("Tanh", y))
    assert "QLinearConv" not in pattern.kernels(tmp_path)


def test_a_float_graph_output_keeps_a_convolution_float(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    y = pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0))
    pattern.output(pattern.pair(y))
    pattern.output(y)
    assert "QLinearConv" not in pattern.kernels(tmp_path)


def test_one_dequantized_tensor_serves_float_and_integer_readers(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    shared = pattern.pair(pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0)))
    again = pattern.node("Conv", shared, pattern.weight(4, 4, 3, 3, axis=0))
    pattern.output(pattern.pair(again))
    pattern.output(pattern.node("Tanh", shared))
    assert pattern.kernels(tmp_path) == {"QLinearConv": 2, "Tanh": 1}


def _clamped_conv(
    operator: str,
    *,
    scale: float,
    zero_point: int,
    dtype: np.dtype[Any] = _U8,
    bounds: tuple[float, float] = (0.0, 6.0),
) -> Pattern:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7, 7), zero_point=0 if dtype == _S8 else 128, dtype=dtype)
    y = pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0))
    extra = [pattern.constant(np.float32(bound)) for bound in bounds] if operator == "Clip" else []
    z = pattern.node(operator, y, *extra)
    pattern.output(pattern.pair(z, scale=scale, zero_point=zero_point, dtype=dtype))
    return pattern


@pytest.mark.parametrize(("dtype", "zero_point"), [(_U8, 0), (_S8, -128)])
def test_relu_is_absorbed_where_the_grid_begins_at_zero(tmp_path: Path, dtype: np.dtype[Any], zero_point: int) -> None:
    assert _clamped_conv("Relu", scale=0.1, zero_point=zero_point, dtype=dtype).kernels(tmp_path) == {"QLinearConv": 1}


def test_relu_is_not_absorbed_by_a_symmetric_grid(tmp_path: Path) -> None:
    assert "QLinearConv" not in _clamped_conv("Relu", scale=0.1, zero_point=0, dtype=_S8).kernels(tmp_path)


@pytest.mark.parametrize(
    ("bounds", "zero_point"), [((0.0, 6.0), 0), ((-1.0, 1.0), 128), ((-3.0, 3.0), 127), ((0.0, 1.0), 0)]
)
def test_clip_is_absorbed_where_the_grid_ends_within_its_bounds(
    tmp_path: Path, bounds: tuple[float, float], zero_point: int
) -> None:
    # Slightly within: how the ends of a grid round to float32 must not decide.
    scale = min((0.0 - bounds[0]) / zero_point if zero_point else np.inf, bounds[1] / (255 - zero_point)) * (1 - 1e-6)
    assert _clamped_conv("Clip", scale=scale, zero_point=zero_point, bounds=bounds).kernels(tmp_path) == {
        "QLinearConv": 1
    }


def test_clip_is_not_absorbed_where_the_grid_reaches_past_its_bounds(tmp_path: Path) -> None:
    assert "QLinearConv" not in _clamped_conv("Clip", scale=7.0 / 255.0, zero_point=0).kernels(tmp_path)


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("weights", [_S8, _U8])
def test_matmul_with_a_quantized_output_runs_on_integers(
    tmp_path: Path, axis: int | None, weights: np.dtype[Any]
) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(2, 5, 6))
    w = pattern.weight(6, 3, axis=axis, dtype=weights, zero_point=0 if weights == _S8 else 128)
    pattern.output(pattern.pair(pattern.node("MatMul", x, w)))
    assert pattern.kernels(tmp_path) == {"QLinearMatMul": 1}


@pytest.mark.parametrize("axis", [None, 1])
def test_matmul_with_a_float_output_runs_on_integers(tmp_path: Path, axis: int | None) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(2, 5, 6))
    pattern.output(pattern.node("MatMul", x, pattern.weight(6, 3, axis=axis)))
    assert pattern.kernels(tmp_path) == {"MatMulIntegerToFloat": 1}


@pytest.mark.parametrize("quantized_output", [True, False])
def test_matmul_of_two_activations_runs_on_integers(tmp_path: Path, quantized_output: bool) -> None:
    pattern = Pattern()
    left, right = pattern.pair(pattern.input(2, 5, 6)), pattern.pair(pattern.input(2, 6, 5), zero_point=3)
    product = pattern.node("MatMul", left, right)
    pattern.output(pattern.pair(product) if quantized_output else product)
    expected = "QLinearMatMul" if quantized_output else "MatMulIntegerToFloat"
    assert pattern.kernels(tmp_path) == {expected: 1}


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_a_float_reader_beside_a_quantized_one_keeps_a_product_float(tmp_path: Path, operator: str) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(5, 6))
    y = pattern.node(operator, x, pattern.weight(6, 3, axis=1))
    pattern.output(pattern.pair(y))
    pattern.output(pattern.node("Tanh", y))
    assert pattern.kernels(tmp_path) == {operator: 1, "Tanh": 1}


def test_matmul_weights_with_scales_on_the_first_axis_do_not_run(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(5, 6))
    pattern.output(pattern.pair(pattern.node("MatMul", x, pattern.weight(6, 3, axis=0))))
    with pytest.raises(RuntimeRefusedError):
        Session(pattern.model(), threads=1).run({"x0": np.ones((5, 6), np.float32)})


@pytest.mark.parametrize("quantized_output", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0), (0, None), (1, None)])
def test_gemm_runs_on_integers(
    tmp_path: Path, quantized_output: bool, bias: bool, transposed: int, axis: int | None
) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(5, 6))
    w = pattern.weight(*((3, 6) if transposed else (6, 3)), axis=axis)
    inputs = [x, w] + ([pattern.bias(3, per_channel=axis is not None)] if bias else [])
    y = pattern.node("Gemm", *inputs, transB=transposed)
    pattern.output(pattern.pair(y) if quantized_output else y)
    assert pattern.kernels(tmp_path) == {"QGemm": 1}


def test_gemm_that_weighs_its_bias_stays_float(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(5, 6))
    y = pattern.node("Gemm", x, pattern.weight(6, 3, axis=1), pattern.bias(3), beta=0.5)
    pattern.output(pattern.pair(y))
    assert "QGemm" not in pattern.kernels(tmp_path)


@pytest.mark.parametrize("dtype", [_U8, _S8])
@pytest.mark.parametrize(("operator", "kernel"), [("Add", "QLinearAdd"), ("Mul", "QLinearMul")])
def test_sums_and_products_of_two_tensors_run_on_integers(
    tmp_path: Path, operator: str, kernel: str, dtype: np.dtype[Any]
) -> None:
    pattern = Pattern()
    left = pattern.pair(pattern.input(1, 4, 7), zero_point=3, dtype=dtype)
    right = pattern.pair(pattern.input(1, 4, 7), scale=0.02, zero_point=7, dtype=dtype)
    pattern.output(pattern.pair(pattern.node(operator, left, right), scale=0.3, zero_point=1, dtype=dtype))
    assert pattern.kernels(tmp_path) == {kernel: 1}


@pytest.mark.parametrize(("operator", "kernel"), [("Add", "QLinearAdd"), ("Mul", "QLinearMul")])
def test_a_quantized_constant_operand_runs_on_integers(tmp_path: Path, operator: str, kernel: str) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7))
    constant = pattern.weight(4, 1, dtype=_U8, zero_point=128)
    pattern.output(pattern.pair(pattern.node(operator, x, constant), scale=0.3))
    assert pattern.kernels(tmp_path) == {kernel: 1}


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_a_float_constant_operand_stays_float(tmp_path: Path, operator: str) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7))
    constant = pattern.constant(np.full((4, 1), 0.5, np.float32))
    pattern.output(pattern.pair(pattern.node(operator, x, constant), scale=0.3))
    assert pattern.kernels(tmp_path) == {operator: 1}


@pytest.mark.parametrize("dtype", [_U8, _S8])
@pytest.mark.parametrize(
    ("operator", "kernel", "attributes"),
    [
        ("Sigmoid", "QLinearSigmoid", {}),
        ("LeakyRelu", "QLinearLeakyRelu", {"alpha": 0.1}),
        ("AveragePool", "QLinearAveragePool", {"kernel_shape": [2, 2]}),
        ("GlobalAveragePool", "QLinearGlobalAveragePool", {}),
    ],
)
def test_unary_operators_run_on_integers_under_their_own_scale(
    tmp_path: Path, operator: str, kernel: str, attributes: dict[str, Any], dtype: np.dtype[Any]
) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 6, 6), zero_point=5, dtype=dtype)
    pattern.output(pattern.pair(pattern.node(operator, x, **attributes), scale=0.004, zero_point=0, dtype=dtype))
    assert pattern.kernels(tmp_path) == {kernel: 1}


def test_silu_runs_on_integers_with_pairs_around_both_its_parts(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 6))
    gate = pattern.pair(pattern.node("Sigmoid", x), scale=1 / 255, zero_point=0)
    pattern.output(pattern.pair(pattern.node("Mul", x, gate), scale=0.02, zero_point=20))
    assert pattern.kernels(tmp_path) == {"QLinearSigmoid": 1, "QLinearMul": 1}


def test_concat_of_quantized_tensors_runs_on_integers(tmp_path: Path) -> None:
    pattern = Pattern()
    left = pattern.pair(pattern.input(1, 4, 7), zero_point=3)
    right = pattern.pair(pattern.input(1, 2, 7), scale=0.02, zero_point=7)
    pattern.output(pattern.pair(pattern.node("Concat", left, right, axis=1), scale=0.07))
    assert pattern.kernels(tmp_path) == {"QLinearConcat": 1}


def _moving(operator: str, pattern: Pattern, x: str) -> str:
    """Applies an operator that only moves values to ``x``, of shape (1, 4, 6, 6)."""

    def integers(*values: int) -> str:
        return pattern.constant(np.array(values, np.int64))

    empty = ""
    extra: dict[str, list[str]] = {
        "Reshape": [integers(1, -1)],
        "Squeeze": [integers(0)],
        "Unsqueeze": [integers(0)],
        "Slice": [integers(1), integers(3), integers(2)],
        "Gather": [integers(2, 0)],
        "Expand": [integers(3, 4, 6, 6)],
        "Tile": [integers(1, 1, 2, 1)],
        "Resize": [empty, pattern.constant(np.array([1, 1, 2, 2], np.float32))] if operator == "Resize" else [],
    }
    attributes: dict[str, dict[str, Any]] = {
        "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]},
        "Transpose": {"perm": [0, 2, 3, 1]},
        "Gather": {"axis": 1},
        "Resize": {"mode": "nearest"},
        "DepthToSpace": {"blocksize": 2},
    }
    return pattern.node(operator, x, *extra.get(operator, []), **attributes.get(operator, {}))


@pytest.mark.parametrize(
    "operator",
    [
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Gather",
        "Expand",
        "Tile",
        "Resize",
        "DepthToSpace",
    ],
)
def test_integers_pass_through_what_only_moves_values(tmp_path: Path, operator: str) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    pattern.output(pattern.pair(_moving(operator, pattern, x)))
    optimized = pattern.optimized(tmp_path)
    # One Q on the way in and one DQ on the way out: nothing is dequantized in between.
    assert optimized["QuantizeLinear"] == optimized["DequantizeLinear"] == 1
    assert optimized.keys() - _FLOAT_LEFTOVERS <= {operator, "Reshape", "Squeeze", "Unsqueeze"}


def test_integers_pass_through_split(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    for part in pattern.nodes_of("Split", x, outputs=2, axis=1):
        pattern.output(pattern.pair(part))
    optimized = pattern.optimized(tmp_path)
    assert optimized == {"QuantizeLinear": 1, "Split": 1, "DequantizeLinear": 2}


@pytest.mark.parametrize("operator", ["MaxPool", "Reshape", "Transpose"])
def test_moving_values_between_different_scales_stays_float(tmp_path: Path, operator: str) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    pattern.output(pattern.pair(_moving(operator, pattern, x), scale=0.03))
    optimized = pattern.optimized(tmp_path)
    assert optimized["QuantizeLinear"] + optimized["DequantizeLinear"] > 2


def test_resizing_linearly_stays_float(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    scales = pattern.constant(np.array([1, 1, 2, 2], np.float32))
    pattern.output(pattern.pair(pattern.node("Resize", x, "", scales, mode="linear")))
    assert pattern.optimized(tmp_path) == {"QuantizeLinear": 2, "DequantizeLinear": 2, "Resize": 1}


@pytest.mark.parametrize("operator", ["Sub", "Div", "ReduceMean", "Tanh", "Erf", "HardSigmoid", "ConvTranspose"])
def test_operators_without_an_integer_kernel_stay_float(tmp_path: Path, operator: str) -> None:
    pattern = Pattern(opset=14)
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    inputs = [x]
    if operator in ("Sub", "Div"):
        inputs.append(pattern.pair(pattern.input(1, 4, 6, 6)))
    if operator == "ConvTranspose":
        inputs.append(pattern.weight(4, 2, 2, 2))
    attributes = {"axes": [2, 3]} if operator == "ReduceMean" else {}
    pattern.output(pattern.pair(pattern.node(operator, *inputs, **attributes)))
    assert pattern.kernels(tmp_path) == {operator: 1}


def test_a_float_convolution_between_pairs_is_quantized_by_onnxruntime_itself(tmp_path: Path) -> None:
    # So a convolution that is to stay float must have no pair on at least one of its sides.
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    w = pattern.constant(np.random.default_rng(0).normal(0, 1, (4, 4, 3, 3)).astype(np.float32))
    pattern.output(pattern.pair(pattern.node("Conv", x, w)))
    assert pattern.kernels(tmp_path) == {"QLinearConv": 1}


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_float_convolution_with_a_pair_on_one_side_stays_float(tmp_path: Path, side: str) -> None:
    pattern = Pattern()
    x = pattern.input(1, 4, 7, 7)
    w = pattern.constant(np.random.default_rng(0).normal(0, 1, (4, 4, 3, 3)).astype(np.float32))
    y = pattern.node("Conv", pattern.pair(x) if side == "before" else x, w)
    pattern.output(pattern.pair(y) if side == "after" else y)
    assert pattern.kernels(tmp_path) == {"Conv": 1}


@pytest.mark.parametrize("clamped", [True, False])
def test_onnxruntime_rounds_the_weights_of_a_float_transposed_convolution_between_pairs(
    tmp_path: Path, clamped: bool
) -> None:
    # Nothing is won by that: it has no integer kernel, and its weights are dequantized in every run.
    pattern = Pattern()
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    y = pattern.node("ConvTranspose", x, pattern.constant(np.ones((4, 2, 2, 2), np.float32)))
    y = pattern.node("Relu", y) if clamped else y
    pattern.output(pattern.pair(y, zero_point=0))
    optimized = pattern.optimized(tmp_path)
    assert optimized["ConvTranspose"] == 1
    assert optimized["DequantizeLinear"] == 3


def test_a_float_matmul_between_pairs_keeps_its_weights(tmp_path: Path) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(5, 6))
    pattern.output(pattern.pair(pattern.node("MatMul", x, pattern.constant(np.ones((6, 3), np.float32)))))
    assert pattern.optimized(tmp_path) == {"QuantizeLinear": 2, "DequantizeLinear": 2, "MatMul": 1}


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("level", ["extended", "all"])
def test_a_sum_of_one_tensor_keeps_a_layer_between_pairs_float(tmp_path: Path, operator: str, level: Level) -> None:
    pattern = Pattern()
    x = pattern.pair(pattern.input(5, 6) if operator == "Gemm" else pattern.input(1, 4, 7, 7))
    w = pattern.constant(np.ones((6, 3) if operator == "Gemm" else (4, 4, 2, 2), np.float32))
    pattern.output(pattern.pair(pattern.node("Sum", pattern.node(operator, x, w))))
    optimized = pattern.optimized(tmp_path, level)
    assert (optimized[operator], optimized["Sum"]) == (1, 1)
    assert (optimized["QuantizeLinear"], optimized["DequantizeLinear"]) == (2, 2)
