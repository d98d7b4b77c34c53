"""Affine parameters and grids hold their promises for every range and every value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qtool.calib.affine import SMALLEST_SCALE, Range, dequantize, params_from_range, params_from_ranges, quantize
from qtool.calib.errors import CalibError
from qtool.calib.granularity import PerChannel
from qtool.calib.grid import Grid

# An exponent of 100 keeps range ends and their sums inside float32; the wider ones have tests of their own.
_REAL = st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32)
_SPANS = st.tuples(_REAL, _REAL).map(lambda ends: Range(min(ends), max(ends)))
_GRIDS = st.builds(Grid, bits=st.sampled_from([8, 16]), signed=st.booleans(), symmetric=st.booleans())
_EIGHT_BIT_GRIDS = st.builds(Grid, bits=st.just(8), signed=st.booleans(), symmetric=st.booleans())
_SHARES = st_numpy.arrays(np.float64, st.integers(1, 20), elements=st.floats(0.0, 1.0))


def _values_in(span: Range, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    values = (span.low + shares * (span.high - span.low)).astype(np.float32)
    return np.clip(values, np.float32(span.low), np.float32(span.high))


@given(_SPANS, _GRIDS)
def test_zero_survives_the_round_trip(span: Range, grid: Grid) -> None:
    params = params_from_range(span, grid)
    restored = dequantize(quantize(np.zeros(3, np.float32), params), params)
    assert np.array_equal(restored, np.zeros(3, np.float32))


@given(_SPANS, _GRIDS)
def test_scale_is_a_finite_positive_normal_float32(span: Range, grid: Grid) -> None:
    params = params_from_range(span, grid)
    assert params.scale.dtype == np.float32
    assert params.scale.shape == params.zero_point.shape == ()
    assert np.isfinite(params.scale)
    assert params.scale >= SMALLEST_SCALE


@given(_SPANS, _GRIDS)
def test_zero_point_lies_on_the_grid(span: Range, grid: Grid) -> None:
    params = params_from_range(span, grid)
    assert params.zero_point.dtype == grid.dtype
    assert grid.low <= int(params.zero_point) <= grid.high


@given(_SPANS, _GRIDS)
def test_symmetric_zero_point_is_the_middle_of_the_grid(span: Range, grid: Grid) -> None:
    assume(grid.symmetric)
    assert int(params_from_range(span, grid).zero_point) == (0 if grid.signed else 2 ** (grid.bits - 1))


@given(_SPANS, _GRIDS, st_numpy.arrays(np.float32, st.integers(0, 30), elements=st.floats(width=32, allow_nan=False)))
@pytest.mark.filterwarnings("ignore:overflow")
def test_quantize_never_leaves_the_grid(span: Range, grid: Grid, values: npt.NDArray[np.float32]) -> None:
    integers = quantize(values, params_from_range(span, grid))
    assert integers.dtype == grid.dtype
    assert integers.shape == values.shape
    assert all(grid.low <= int(integer) <= grid.high for integer in integers)


@given(_SPANS, _GRIDS, _SHARES)
def test_rounding_moves_a_value_on_the_grids_range_by_half_a_step_at_most(
    span: Range, grid: Grid, shares: npt.NDArray[np.float64]
) -> None:
    params = params_from_range(span, grid)
    values = _values_in(params.range, shares)
    error = np.abs(values.astype(np.float64) - dequantize(quantize(values, params), params))
    # The quotient and the product round to float32: up to 2^bits steps, each off by 2^-24 of itself.
    steps = 0.5 + 3 * 2.0**grid.bits * 2.0**-24
    assert (error <= steps * float(params.scale)).all()


@given(_SPANS, _GRIDS, _SHARES)
def test_a_value_of_the_span_moves_by_one_step_at_most(
    span: Range, grid: Grid, shares: npt.NDArray[np.float64]
) -> None:
    params = params_from_range(span, grid)
    values = _values_in(span, shares)
    assume(span.low < span.high or span.low != 0.0)
    error = np.abs(values.astype(np.float64) - dequantize(quantize(values, params), params))
    # Half a step for rounding, half for a zero point that had to move onto the grid.
    assert (error <= (1.0 + 3 * 2.0**grid.bits * 2.0**-24) * float(params.scale)).all()


@given(_SPANS, _GRIDS)
def test_the_grid_does_not_reach_a_whole_step_past_the_span(span: Range, grid: Grid) -> None:
    params = params_from_range(span, grid)
    assume(float(params.scale) > SMALLEST_SCALE)
    low, high = min(span.low, 0.0), max(span.high, 0.0)
    assume(low < high)
    step = float(params.scale) * (1 + 1e-2)
    if grid.symmetric:
        reach = max(-low, high)
        assert params.range.high <= reach + step
    else:
        assert low - step <= params.range.low
        assert params.range.high <= high + step


@pytest.mark.filterwarnings("ignore:overflow")
@given(_SPANS, _GRIDS, st_numpy.arrays(np.float32, 8, elements=_REAL))
def test_quantize_keeps_the_order_of_values(span: Range, grid: Grid, values: npt.NDArray[np.float32]) -> None:
    integers = quantize(np.sort(values), params_from_range(span, grid)).astype(np.int64)
    assert (np.diff(integers) >= 0).all()


@given(_SPANS, _GRIDS, _SHARES)
def test_a_dequantized_value_quantizes_to_the_same_integer(
    span: Range, grid: Grid, shares: npt.NDArray[np.float64]
) -> None:
    params = params_from_range(span, grid)
    integers = np.rint(grid.low + shares * (grid.high - grid.low)).astype(grid.dtype)
    assert np.array_equal(quantize(dequantize(integers, params), params), integers)


@pytest.mark.filterwarnings("ignore:overflow")
@given(
    st.lists(_SPANS, min_size=1, max_size=5),
    _GRIDS,
    st.integers(0, 2),
    st.integers(0, 2**32 - 1),
)
def test_per_channel_equals_per_tensor_of_every_slice(spans: list[Range], grid: Grid, axis: int, seed: int) -> None:
    lows, highs = np.array([span.low for span in spans]), np.array([span.high for span in spans])
    params = params_from_ranges(lows, highs, grid, PerChannel(axis))
    shape = [2, 3, 4]
    shape[axis] = len(spans)
    reach = np.abs(np.concatenate([lows, highs])).max()
    values = np.random.default_rng(seed).uniform(-1.2 * reach, 1.2 * reach, shape).astype(np.float32)
    integers = quantize(values, params)
    restored = dequantize(integers, params)
    for channel, span in enumerate(spans):
        alone = params_from_range(span, grid)
        assert params.scale[channel] == alone.scale
        assert params.zero_point[channel] == alone.zero_point
        expected = quantize(values.take(channel, axis), alone)
        assert np.array_equal(integers.take(channel, axis), expected)
        assert np.array_equal(restored.take(channel, axis), dequantize(expected, alone))


@given(_SPANS)
def test_asymmetric_parameters_follow_the_written_out_formula(span: Range) -> None:
    low, high = min(span.low, 0.0), max(span.high, 0.0)
    assume(high - low > 255 * SMALLEST_SCALE)
    params = params_from_range(span, Grid(bits=8, signed=False, symmetric=False))
    scale = np.float32((high - low) / 255.0)
    assert params.scale == scale
    assert int(params.zero_point) == min(max(round(-low / float(scale)), 0), 255)


@given(_SPANS)
def test_symmetric_parameters_follow_the_written_out_formula(span: Range) -> None:
    reach = max(abs(span.low), abs(span.high))
    assume(reach > 127 * SMALLEST_SCALE)
    params = params_from_range(span, Grid(bits=8, signed=True, symmetric=True))
    assert params.scale == np.float32(max(-span.low, span.high, 0.0) / 127.0)
    assert int(params.zero_point) == 0


@given(st.floats(0.0, 2.0**-66, width=32), st.floats(0.0, 2.0**-66, width=32), _GRIDS)
def test_a_subnormal_range_gets_the_smallest_scale_or_one(below: float, above: float, grid: Grid) -> None:
    params = params_from_range(Range(-below, above), grid)
    assert float(params.scale) == (1.0 if below == above == 0.0 else SMALLEST_SCALE)


@given(_GRIDS)
def test_a_range_of_half_of_float32_still_round_trips(grid: Grid) -> None:
    largest = float(np.finfo(np.float32).max) / 2
    params = params_from_range(Range(-largest, largest), grid)
    ends = np.array([-largest, 0.0, largest], np.float32)
    restored = dequantize(quantize(ends, params), params).astype(np.float64)
    assert np.abs(restored - ends.astype(np.float64)).max() <= float(params.scale) * 1.01


@given(_REAL, _GRIDS)
def test_a_constant_is_kept_to_half_a_step(constant: float, grid: Grid) -> None:
    params = params_from_range(Range(constant, constant), grid)
    values = np.full(4, constant, np.float32)
    error = np.abs(values - dequantize(quantize(values, params), params)).max()
    assert error <= float(params.scale) * (0.5 + 3 * 2.0**grid.bits * 2.0**-24)


@given(_GRIDS)
def test_an_all_zero_tensor_gets_scale_one(grid: Grid) -> None:
    params = params_from_range(Range(0.0, 0.0), grid)
    assert float(params.scale) == 1.0


@given(_GRIDS, st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans())
def test_a_range_that_is_not_finite_is_refused(grid: Grid, bad: float, at_low: bool) -> None:
    with pytest.raises(CalibError) as caught:
        params_from_range(Range(bad, 1.0) if at_low else Range(-1.0, bad), grid)
    assert caught.value.fix


@given(_SPANS, _GRIDS)
def test_a_range_in_the_wrong_order_is_refused(span: Range, grid: Grid) -> None:
    assume(span.low < span.high)
    with pytest.raises(CalibError, match="ends before it begins"):
        params_from_range(Range(span.high, span.low), grid)


@given(_GRIDS)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_range_past_float32_is_refused(grid: Grid) -> None:
    with pytest.raises(CalibError, match="too wide"):
        params_from_range(Range(-1e300, 1e300), grid)


# --- agreement with the operator specification


def _reference(operator: str, element: int) -> ReferenceEvaluator:
    quantizes = operator == "QuantizeLinear"
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "scale", "zero_point"], ["y"])],
        "one",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT if quantizes else element, None),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("zero_point", element, None),
        ],
        [helper.make_tensor_value_info("y", element if quantizes else TensorProto.FLOAT, None)],
    )
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


_ELEMENTS = {"u8": TensorProto.UINT8, "s8": TensorProto.INT8, "u16": TensorProto.UINT16, "s16": TensorProto.INT16}
_QUANTIZERS = {name: _reference("QuantizeLinear", element) for name, element in _ELEMENTS.items()}
_DEQUANTIZERS = {name: _reference("DequantizeLinear", element) for name, element in _ELEMENTS.items()}


@given(_SPANS, _GRIDS, _SHARES)
def test_quantize_and_dequantize_agree_with_the_onnx_reference(
    span: Range, grid: Grid, shares: npt.NDArray[np.float64]
) -> None:
    params = params_from_range(span, grid)
    values = _values_in(params.range, shares)
    (integers,) = _QUANTIZERS[grid.name].run(
        None, {"x": values, "scale": params.scale, "zero_point": params.zero_point}
    )
    assert np.array_equal(quantize(values, params), integers)
    (restored,) = _DEQUANTIZERS[grid.name].run(
        None, {"x": integers, "scale": params.scale, "zero_point": params.zero_point}
    )
    assert np.array_equal(dequantize(integers, params), restored)


@given(_EIGHT_BIT_GRIDS, st.lists(st.integers(-120, 120), min_size=1, max_size=10))
def test_halves_round_to_the_even_integer(grid: Grid, integers: list[int]) -> None:
    # A power of two as scale makes the halves exact.
    reach = 0.25 * (grid.high - grid.middle)
    span = Range(-reach, reach) if grid.symmetric else Range(0.25 * (grid.low - 0), 0.25 * (grid.high - 0))
    params = params_from_range(span, grid)
    assert float(params.scale) == 0.25
    zero = int(params.zero_point)
    for integer in integers:
        half = np.array([0.25 * (integer + 0.5)], np.float32)
        even = integer if integer % 2 == 0 else integer + 1
        expected = min(max(even + zero, grid.low), grid.high)
        assert int(quantize(half, params)[0]) == expected
        (reference,) = _QUANTIZERS[grid.name].run(
            None, {"x": half, "scale": params.scale, "zero_point": params.zero_point}
        )
        assert int(np.clip(int(reference[0]), grid.low, grid.high)) == expected
