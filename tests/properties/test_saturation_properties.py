"""The proof against 16-bit overflow agrees with trying every input; what it changes can no longer overflow."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtool.backends.onnxruntime_cpu.kernel_order import kernel_order
from qtool.calib.affine import dequantize
from qtool.calib.granularity import Granularity, PerChannel, PerTensor
from qtool.calib.grid import Grid
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
from qtool.weights.saturation import KernelOrder, pair_sums, without_saturation

_BYTES = np.arange(256)
_LIMIT = 32767 // 255
_S8 = Grid(bits=8, signed=True, symmetric=True)
_ORDERS = {
    "conv": (kernel_order("Conv", 4), (2, 3, 2, 2), 0),
    "depthwise conv": (kernel_order("Conv", 4), (3, 1, 2, 2), 0),
    "1-D conv": (kernel_order("Conv", 3), (2, 4, 3), 0),
    "matmul": (kernel_order("MatMul", 2), (6, 4), 1),
    "gemm": (kernel_order("Gemm", 2, transposed=True), (4, 6), 0),
    "stack of matrices": (kernel_order("MatMul", 3), (2, 6, 4), 2),
}
_WEIGHTS = st.floats(-1, 1, width=32)


def _by_hand(case: str, integers: np.ndarray) -> list[list[int]]:
    """Writes out the sum of each output in the order in which a kernel goes through it."""
    if "conv" in case:
        positions = list(np.ndindex(*integers.shape[2:]))
        channels = range(integers.shape[1])
        return [[int(one[(channel, *at)]) for at in positions for channel in channels] for one in integers]
    if case == "gemm":
        return integers.tolist()
    stack = integers.reshape(-1, *integers.shape[-2:])
    return [matrix[:, column].tolist() for matrix in stack for column in range(matrix.shape[1])]


def _overflows(row: list[int]) -> bool:
    """Tries all 65,536 inputs of every pair, as VPMADDUBSW meets them."""
    pairs = zip_longest(row[::2], row[1::2], fillvalue=0)
    sums = [_BYTES[:, None] * first + _BYTES[None, :] * second for first, second in pairs]
    return any((grid.max() > 32767) or (grid.min() < -32768) for grid in sums)


@given(hnp.arrays(np.int8, (1, 2)))
def test_the_worst_sums_are_those_of_all_inputs(pair: np.ndarray) -> None:
    found = pair_sums(pair, kernel_order("Gemm", 2, transposed=True))
    first, second = (int(weight) for weight in pair[0])
    products = _BYTES[:, None] * first + _BYTES[None, :] * second
    assert int(found.highest[0]) * 255 == products.max()
    assert int(found.lowest[0]) * 255 == products.min()


@pytest.mark.parametrize("case", _ORDERS)
@given(data=st.data())
def test_a_channel_is_called_unsafe_if_and_only_if_some_input_overflows_it(case: str, data: st.DataObject) -> None:
    order, shape, _ = _ORDERS[case]
    integers = data.draw(hnp.arrays(np.int8, shape))
    rows = _by_hand(case, integers)
    assert (pair_sums(integers, order).worst > _LIMIT).tolist() == [_overflows(row) for row in rows]
    assert np.array_equal(order.restored(order.rows(integers), shape), integers)


def _reduced(
    weights: np.ndarray, order: KernelOrder, granularity: Granularity, grid: Grid = _S8
) -> tuple[QuantizedWeight, QuantizedWeight]:
    before = round_to_nearest("w", weights, grid, granularity)
    return before, without_saturation(before, weights, (order,), _LIMIT)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", _ORDERS)
@given(data=st.data())
def test_nothing_overflows_any_more(case: str, per_channel: bool, symmetric: bool, data: st.DataObject) -> None:
    order, shape, axis = _ORDERS[case]
    weights = data.draw(hnp.arrays(np.float32, shape, elements=_WEIGHTS))
    granularity = PerChannel(axis) if per_channel else PerTensor()
    _, after = _reduced(weights, order, granularity, Grid(bits=8, signed=True, symmetric=symmetric))
    assert pair_sums(after.integers, order).worst.max() <= _LIMIT
    assert after.integers.dtype == np.int8
    assert after.params.scale.dtype == np.float32


@given(hnp.arrays(np.float32, (5, 8), elements=_WEIGHTS))
def test_only_channels_that_can_overflow_change(weights: np.ndarray) -> None:
    order = kernel_order("Gemm", 2, transposed=True)
    before, after = _reduced(weights, order, PerChannel(0))
    unsafe = pair_sums(before.integers, order).worst > _LIMIT
    assert after.reduced_channels == tuple(np.flatnonzero(unsafe))
    assert np.array_equal(after.integers[~unsafe], before.integers[~unsafe])
    assert np.array_equal(after.params.scale[~unsafe], before.params.scale[~unsafe])
    assert (after.params.scale >= before.params.scale).all()


def _almost_equal_weights() -> np.ndarray:
    """Makes weights that twice the scale happens to represent almost exactly."""
    weights = np.full((4, 3, 2, 2), 0.625, np.float32)
    weights[:2, 0, 0, 0] = 0.9667969, 0.9003906
    weights[0, 1, 0, 0] = 0.75
    return weights


@example(_almost_equal_weights())
@given(hnp.arrays(np.float32, (4, 3, 2, 2), elements=_WEIGHTS))
def test_it_loses_no_more_than_seven_bits_would(weights: np.ndarray) -> None:
    before, after = _reduced(weights, kernel_order("Conv", 4), PerChannel(0))
    halved = np.rint(weights / (2 * before.params.scale.reshape(-1, 1, 1, 1))) * 2
    seven_bits = np.square(halved * before.params.scale.reshape(-1, 1, 1, 1) - weights).sum()
    found = np.square(dequantize(after.integers, after.params) - weights).sum()
    assert found <= seven_bits * 1.01 + 1e-9


def test_a_weight_that_two_layers_read_is_safe_in_both() -> None:
    weights = np.random.default_rng(0).normal(0, 1, (8, 8)).astype(np.float32)
    orders = (kernel_order("MatMul", 2), kernel_order("Gemm", 2, transposed=True))
    before = round_to_nearest("w", weights, _S8, PerTensor())
    after = without_saturation(before, weights, orders, _LIMIT)
    assert max(pair_sums(before.integers, order).worst.max() for order in orders) > _LIMIT
    assert max(pair_sums(after.integers, order).worst.max() for order in orders) <= _LIMIT


def test_unsigned_weights_and_wide_sums_are_left_alone() -> None:
    weights = np.ones((2, 8), np.float32)
    order = kernel_order("Gemm", 2, transposed=True)
    unsigned = round_to_nearest("w", weights, Grid(bits=8, signed=False, symmetric=False), PerTensor())
    assert without_saturation(unsigned, weights, (order,), _LIMIT) is unsigned
    signed = round_to_nearest("w", weights, _S8, PerTensor())
    assert without_saturation(signed, weights, (order,), None) is signed
