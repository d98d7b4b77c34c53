"""Weights in blocks, against formulas written out and what onnxruntime computes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.errors import InputError
from qtool.qdq.packed_blocks import packed, packed_weight, unpacked, unpacked_weight
from qtool.weights.blocks.gptq import gptq_blocks, product_noise
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import BlockWeight, round_blocks
from qtool.weights.blocks.ranges import least_squares_blocks
from qtool.weights.gptq_layer import curvature_of

_GRIDS = [
    BlockGrid(bits=bits, block=block, symmetric=symmetric)
    for bits in (2, 4, 8)
    for block in (16, 32, None)
    for symmetric in (True, False)
]
_GRIDS_BY_NAME = {grid.description: grid for grid in _GRIDS}


@pytest.fixture(params=_GRIDS_BY_NAME)
def grid(request: pytest.FixtureRequest) -> BlockGrid:
    return _GRIDS_BY_NAME[request.param]


def _weights(outputs: int = 24, inputs: int = 72, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(4, (outputs, inputs)) * 0.1).astype(np.float32)


def _error(weights: np.ndarray, rounded: BlockWeight) -> float:
    return float(np.square(rounded.dequantized().astype(np.float64) - weights).sum())


def test_each_weight_is_at_most_half_a_step_from_its_integer(grid: BlockGrid) -> None:
    weights = _weights()
    found = round_blocks("w", weights, grid)
    length = weights.shape[1] if grid.block is None else grid.block
    for start in range(0, weights.shape[1], length):
        block = weights[:, start : start + length]
        scale = found.scales[:, start // length][:, None].astype(np.float64)
        zero = found.zero_points[:, start // length][:, None].astype(np.float64)
        integers = found.integers[:, start : start + length].astype(np.float64)
        wanted = np.clip(np.rint(block / scale + zero), 0, 2**grid.bits - 1)
        np.testing.assert_array_equal(integers, wanted)
        # The grid reaches from the smallest to the largest weight, but for the last step of a symmetric one.
        assert (np.abs((integers - zero) * scale - block) <= np.abs(scale) * (1.0 if grid.symmetric else 0.51)).all()


@pytest.mark.parametrize(("outputs", "inputs"), [(1100, 300), (40, 2000), (3, 17)])
@pytest.mark.parametrize("block", [16, 128, None])
def test_a_transposed_weight_gets_the_same_integers(outputs: int, inputs: int, block: int | None) -> None:
    grid = BlockGrid(bits=8, block=block, symmetric=False)
    weights = _weights(outputs, inputs)
    found, turned = round_blocks("w", weights, grid), round_blocks("w", np.asfortranarray(weights), grid)
    for field in ("integers", "scales", "zero_points"):
        np.testing.assert_array_equal(getattr(turned, field), getattr(found, field), err_msg=field)


@pytest.mark.parametrize("rounds", [round_blocks, least_squares_blocks])
def test_parts_that_are_rounded_at_the_same_time_come_together(rounds: Callable[..., BlockWeight]) -> None:
    grid = BlockGrid(bits=4, block=32, symmetric=False)
    weights = _weights(300, 1000)  # several parts
    whole = rounds("w", weights, grid)
    for row in (0, 131, 299):
        alone = rounds("w", weights[row : row + 1], grid)
        for field in ("integers", "scales", "zero_points"):
            np.testing.assert_array_equal(getattr(whole, field)[row], getattr(alone, field)[0], err_msg=field)
    weights[299, 999] = np.nan
    with pytest.raises(InputError, match="'w' holds NaN or infinity"):
        rounds("w", weights, grid)


def test_zero_stays_zero(grid: BlockGrid) -> None:
    weights = _weights()
    weights[:, ::3] = 0.0
    for found in (round_blocks("w", weights, grid), least_squares_blocks("w", weights, grid)):
        assert not found.dequantized()[:, ::3].any()


def test_blocks_of_zeros_and_of_one_sign(grid: BlockGrid) -> None:
    weights = np.abs(_weights()) + 0.5
    weights[:4] = 0.0
    weights[4:8] *= -1.0
    for found in (round_blocks("w", weights, grid), least_squares_blocks("w", weights, grid)):
        assert np.isfinite(found.scales).all()
        assert not found.dequantized()[:4].any()
        signal = float(np.square(weights.astype(np.float64)).sum())
        assert _error(weights, found) < signal * 4.0 ** (1 - grid.bits)


def test_fitted_scales_are_no_worse_than_rounding_to_nearest(grid: BlockGrid) -> None:
    weights = _weights()
    assert _error(weights, least_squares_blocks("w", weights, grid)) <= _error(
        weights, round_blocks("w", weights, grid)
    )


@pytest.mark.parametrize("weighs_inputs", [False, True])
def test_scales_are_as_good_as_the_best_of_all_that_are_tried(grid: BlockGrid, *, weighs_inputs: bool) -> None:
    weights = _weights(24, 72).astype(np.float64)
    importance = np.random.default_rng(5).gamma(0.5, size=72) if weighs_inputs else np.ones(72)
    found = least_squares_blocks("w", weights.astype(np.float32), grid, importance if weighs_inputs else None)
    error = np.square(found.dequantized() - weights) * importance
    length, highest = grid.block or 72, 2**grid.bits - 1
    best = 0.0
    for row in weights:
        for start in range(0, 72, length):
            block, counts = row[start : start + length], importance[start : start + length]
            low, high = min(block.min(), 0.0), max(block.max(), 0.0)
            middle, reach = 2 ** (grid.bits - 1), max(-low, high)
            sizes = (reach / middle, -reach / middle) if grid.symmetric else ((high - low) / highest,)
            errors = []
            for scale in (size * share for size in sizes for share in np.linspace(1.0, 0.52, 13)):
                zero = middle if grid.symmetric else np.rint(-low / sizes[0])
                steps = np.clip(np.rint(block / scale + zero), 0, highest) - zero
                fitted = (counts * block * steps).sum() / (counts * steps * steps).sum()
                nearest = np.clip(np.rint(block / fitted + zero), 0, highest) - zero
                errors.append((counts * np.square(nearest * fitted - block)).sum())
            best += min(errors)
    # Eight bits without importance are not fitted: that gains tenths of a decibel.
    assert error.sum() <= best * (1.02 if weighs_inputs or grid.bits < 8 else 1.1)


def test_important_inputs_get_less_error(grid: BlockGrid) -> None:
    weights, importance = _weights(), np.ones(72)
    importance[::8] = 400.0

    def weighted(found: BlockWeight) -> float:
        return float((np.square(found.dequantized().astype(np.float64) - weights) * importance).sum())

    with_importance = least_squares_blocks("w", weights, grid, importance)
    assert weighted(with_importance) < weighted(least_squares_blocks("w", weights, grid))


def test_gptq_reduces_the_error_of_products(grid: BlockGrid) -> None:
    generator = np.random.default_rng(3)
    mixed = generator.normal(0, 1, (72, 72)) * generator.lognormal(0, 1, (72, 1))
    inputs = mixed @ generator.normal(0, 1, (72, 600))
    hessian = inputs @ inputs.T
    weights = _weights()
    given = least_squares_blocks("w", weights, grid, np.diagonal(hessian))
    found = gptq_blocks(weights, given, curvature_of(hessian[np.newaxis]))
    np.testing.assert_array_equal(found.scales, given.scales)
    assert found.integers.max() <= 2**grid.bits - 1
    products = np.square((found.dequantized().astype(np.float64) - weights) @ inputs).sum()
    assert product_noise(weights, found, hessian) == pytest.approx(products)
    assert product_noise(weights, found, hessian) < 0.8 * product_noise(weights, given, hessian)


def test_without_correlation_gptq_rounds_to_nearest() -> None:
    grid, weights = BlockGrid(bits=4, block=16, symmetric=False), _weights()
    given = round_blocks("w", weights, grid)
    found = gptq_blocks(weights, given, curvature_of(np.eye(72)[np.newaxis]))
    np.testing.assert_array_equal(found.integers, given.integers)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    weights = _weights()
    weights[3, 5] = value
    with pytest.raises(InputError, match="'w' holds NaN or infinity"):
        round_blocks("w", weights, _GRIDS[0])


@given(
    bits=st.sampled_from((2, 4, 8)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 70)),
    block=st.sampled_from((16, 32, None)),
    seed=st.integers(0, 99),
)
def test_packing_loses_nothing(bits: int, shape: tuple[int, int], block: int | None, seed: int) -> None:
    integers = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8)
    rows = packed(integers, bits)
    assert rows.shape == (shape[0], -(-shape[1] * bits // 8))
    np.testing.assert_array_equal(unpacked(rows, bits, shape[1]), integers)
    grid = BlockGrid(bits=bits, block=block, symmetric=True)
    weight = BlockWeight(
        integers=integers, scales=np.ones((1, 1), np.float32), zero_points=np.zeros((1, 1), np.uint8), grid=grid
    )
    np.testing.assert_array_equal(unpacked_weight(packed_weight(weight), grid, shape[1]), integers)


def test_the_first_of_two_integers_has_the_lower_bits() -> None:
    np.testing.assert_array_equal(packed(np.array([[1, 2, 3]], np.uint8), 4), [[0x21, 0x03]])
    np.testing.assert_array_equal(packed(np.array([[1, 2, 3, 0, 2]], np.uint8), 2), [[0b00111001, 0b10]])
