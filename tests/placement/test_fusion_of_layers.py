"""Pins what onnxruntime's CPU provider makes of layers between Q and DQ.

Each test opens one small graph and reads the operators off the graph that onnxruntime rewrote. When one of these
fails with a new onnxruntime, the table in ``qtool/backends/qdq_placement/operators.py`` has to change, not the test
alone. Patterns of which versions make different things are in ``test_fusion_by_version.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.runtime.session import Level

_U8, _S8 = np.dtype(np.uint8), np.dtype(np.int8)
# A graph that is built node by node; see the fixture.
Pattern = Any


def _conv(
    pattern: Pattern,
    *spatial: int,
    channels: int = 4,
    group: int = 1,
    per_channel: bool = True,
    bias: bool = True,
    activations: np.dtype[Any] = _U8,
    weights: np.dtype[Any] = _S8,
) -> Pattern:
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
    pattern: Pattern, tmp_path: Path, spatial: tuple[int, ...], group: int, level: Level
) -> None:
    kernels = _conv(pattern, *spatial, group=group).kernels(tmp_path, level)
    # At the highest level the channels move to the end for the kernel.
    assert kernels == {"QLinearConv": 1, **({"Transpose": 2} if level == "all" else {})}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("activations", "weights"), [(_U8, _S8), (_U8, _U8), (_S8, _S8)])
def test_convolutions_of_every_type_run_on_integers(
    pattern: Pattern, tmp_path: Path, per_channel: bool, bias: bool, activations: np.dtype[Any], weights: np.dtype[Any]
) -> None:
    pattern = _conv(pattern, 7, 7, per_channel=per_channel, bias=bias, activations=activations, weights=weights)
    assert pattern.kernels(tmp_path) == {"QLinearConv": 1}


def test_fusion_needs_the_extended_level(pattern: Pattern, tmp_path: Path) -> None:
    assert _conv(pattern, 7, 7).kernels(tmp_path, "basic") == {"Conv": 1}


def test_a_convolution_without_a_quantized_output_stays_float(pattern: Pattern, tmp_path: Path) -> None:
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    pattern.output(pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0)))
    assert pattern.kernels(tmp_path) == {"Conv": 1}


def test_a_second_float_reader_keeps_a_convolution_float(pattern: Pattern, tmp_path: Path) -> None:
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    y = pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0))
    pattern.output(pattern.pair(y))
    pattern.output(pattern.node("Tanh", y))
    assert pattern.optimized(tmp_path) == {"Conv": 1, "Tanh": 1, "QuantizeLinear": 2, "DequantizeLinear": 3}


def test_a_float_graph_output_keeps_a_convolution_float(pattern: Pattern, tmp_path: Path) -> None:
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    y = pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0))
    pattern.output(pattern.pair(y))
    pattern.output(y)
    assert pattern.optimized(tmp_path) == {"Conv": 1, "QuantizeLinear": 2, "DequantizeLinear": 3}


def test_one_dequantized_tensor_serves_float_and_integer_readers(pattern: Pattern, tmp_path: Path) -> None:
    x = pattern.pair(pattern.input(1, 4, 7, 7))
    shared = pattern.pair(pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0)))
    again = pattern.node("Conv", shared, pattern.weight(4, 4, 3, 3, axis=0))
    pattern.output(pattern.pair(again))
    pattern.output(pattern.node("Tanh", shared))
    assert pattern.kernels(tmp_path) == {"QLinearConv": 2, "Tanh": 1}


def _clamped_conv(
    pattern: Pattern,
    operator: str,
    *,
    scale: float,
    zero_point: int,
    dtype: np.dtype[Any] = _U8,
    bounds: tuple[float, float] = (0.0, 6.0),
) -> Pattern:
    x = pattern.pair(pattern.input(1, 4, 7, 7), zero_point=0 if dtype == _S8 else 128, dtype=dtype)
    y = pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0))
    extra = [pattern.constant(np.float32(bound)) for bound in bounds] if operator == "Clip" else []
    z = pattern.node(operator, y, *extra)
    pattern.output(pattern.pair(z, scale=scale, zero_point=zero_point, dtype=dtype))
    return pattern


@pytest.mark.parametrize(("dtype", "zero_point"), [(_U8, 0), (_S8, -128)])
def test_relu_is_absorbed_where_the_grid_begins_at_zero(
    pattern: Pattern, tmp_path: Path, dtype: np.dtype[Any], zero_point: int
) -> None:
    assert _clamped_conv(pattern, "Relu", scale=0.1, zero_point=zero_point, dtype=dtype).kernels(tmp_path) == {
        "QLinearConv": 1
    }


def test_relu_is_not_absorbed_by_a_symmetric_grid(pattern: Pattern, tmp_path: Path) -> None:
    assert _clamped_conv(pattern, "Relu", scale=0.1, zero_point=0, dtype=_S8).kernels(tmp_path) == {"FusedConv": 1}


@pytest.mark.parametrize(
    ("bounds", "zero_point"), [((0.0, 6.0), 0), ((-1.0, 1.0), 128), ((-3.0, 3.0), 127), ((0.0, 1.0), 0)]
)
def test_clip_is_absorbed_where_the_grid_ends_within_its_bounds(
    pattern: Pattern, tmp_path: Path, bounds: tuple[float, float], zero_point: int
) -> None:
    # Slightly within: how the ends of a grid round to float32 must not decide.
    scale = min((0.0 - bounds[0]) / zero_point if zero_point else np.inf, bounds[1] / (255 - zero_point)) * (1 - 1e-6)
    assert _clamped_conv(pattern, "Clip", scale=scale, zero_point=zero_point, bounds=bounds).kernels(tmp_path) == {
        "QLinearConv": 1
    }


def test_clip_is_not_absorbed_where_the_grid_reaches_past_its_bounds(pattern: Pattern, tmp_path: Path) -> None:
    kernels = _clamped_conv(pattern, "Clip", scale=7.0 / 255.0, zero_point=0).kernels(tmp_path)
    assert kernels == {"FusedConv": 1}


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("weights", [_S8, _U8])
def test_matmul_with_a_quantized_output_runs_on_integers(
    pattern: Pattern, tmp_path: Path, axis: int | None, weights: np.dtype[Any]
) -> None:
    x = pattern.pair(pattern.input(2, 5, 6))
    w = pattern.weight(6, 3, axis=axis, dtype=weights, zero_point=0 if weights == _S8 else 128)
    pattern.output(pattern.pair(pattern.node("MatMul", x, w)))
    assert pattern.kernels(tmp_path) == {"QLinearMatMul": 1}


@pytest.mark.parametrize("axis", [None, 1])
def test_matmul_with_a_float_output_runs_on_integers(pattern: Pattern, tmp_path: Path, axis: int | None) -> None:
    x = pattern.pair(pattern.input(2, 5, 6))
    pattern.output(pattern.node("MatMul", x, pattern.weight(6, 3, axis=axis)))
    assert pattern.kernels(tmp_path) == {"MatMulIntegerToFloat": 1}


@pytest.mark.parametrize("quantized_output", [True, False])
def test_matmul_of_two_activations_runs_on_integers(pattern: Pattern, tmp_path: Path, quantized_output: bool) -> None:
    left, right = pattern.pair(pattern.input(2, 5, 6)), pattern.pair(pattern.input(2, 6, 5), zero_point=3)
    product = pattern.node("MatMul", left, right)
    pattern.output(pattern.pair(product) if quantized_output else product)
    expected = "QLinearMatMul" if quantized_output else "MatMulIntegerToFloat"
    assert pattern.kernels(tmp_path) == {expected: 1}


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_a_float_reader_beside_a_quantized_one_keeps_a_product_float(
    pattern: Pattern, tmp_path: Path, operator: str
) -> None:
    x = pattern.pair(pattern.input(5, 6))
    y = pattern.node(operator, x, pattern.weight(6, 3, axis=1))
    pattern.output(pattern.pair(y))
    pattern.output(pattern.node("Tanh", y))
    assert pattern.kernels(tmp_path) == {operator: 1, "Tanh": 1}


@pytest.mark.parametrize("quantized_output", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0), (0, None), (1, None)])
def test_gemm_runs_on_integers(
    pattern: Pattern, tmp_path: Path, quantized_output: bool, bias: bool, transposed: int, axis: int | None
) -> None:
    x = pattern.pair(pattern.input(5, 6))
    w = pattern.weight(*((3, 6) if transposed else (6, 3)), axis=axis)
    inputs = [x, w] + ([pattern.bias(3, per_channel=axis is not None)] if bias else [])
    y = pattern.node("Gemm", *inputs, transB=transposed)
    pattern.output(pattern.pair(y) if quantized_output else y)
    assert pattern.kernels(tmp_path) == {"QGemm": 1}


def test_gemm_that_weighs_its_bias_stays_float(pattern: Pattern, tmp_path: Path) -> None:
    x = pattern.pair(pattern.input(5, 6))
    y = pattern.node("Gemm", x, pattern.weight(6, 3, axis=1), pattern.bias(3), beta=0.5)
    pattern.output(pattern.pair(y))
    assert pattern.optimized(tmp_path) == {"Gemm": 1, "QuantizeLinear": 2, "DequantizeLinear": 4}


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_float_convolution_with_a_pair_on_one_side_stays_float(pattern: Pattern, tmp_path: Path, side: str) -> None:
    x = pattern.input(1, 4, 7, 7)
    w = pattern.constant(np.random.default_rng(0).normal(0, 1, (4, 4, 3, 3)).astype(np.float32))
    y = pattern.node("Conv", pattern.pair(x) if side == "before" else x, w)
    pattern.output(pattern.pair(y) if side == "after" else y)
    assert pattern.kernels(tmp_path) == {"Conv": 1}


def test_a_float_matmul_between_pairs_keeps_its_weights(pattern: Pattern, tmp_path: Path) -> None:
    x = pattern.pair(pattern.input(5, 6))
    pattern.output(pattern.pair(pattern.node("MatMul", x, pattern.constant(np.ones((6, 3), np.float32)))))
    assert pattern.optimized(tmp_path) == {"QuantizeLinear": 2, "DequantizeLinear": 2, "MatMul": 1}


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("level", ["extended", "all"])
def test_a_sum_of_one_tensor_keeps_a_layer_between_pairs_float(
    pattern: Pattern, tmp_path: Path, operator: str, level: Level
) -> None:
    x = pattern.pair(pattern.input(5, 6) if operator == "Gemm" else pattern.input(1, 4, 7, 7))
    w = pattern.constant(np.ones((6, 3) if operator == "Gemm" else (4, 4, 2, 2), np.float32))
    pattern.output(pattern.pair(pattern.node("Sum", pattern.node(operator, x, w))))
    optimized = pattern.optimized(tmp_path, level)
    assert (optimized[operator], optimized["Sum"]) == (1, 1)
    assert (optimized["QuantizeLinear"], optimized["DequantizeLinear"]) == (2, 2)
