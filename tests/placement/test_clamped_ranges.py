"""The grid of a clamped tensor ends within its clamp."""

from __future__ import annotations

import numpy as np
import pytest

from qtool.backends.qdq_placement.clamped_ranges import narrowed
from qtool.calib.affine import Range, dequantize, params_from_range
from qtool.calib.grid import Grid

GRID = Grid(bits=8, signed=False, symmetric=False)


@pytest.mark.parametrize(
    "bounds", [(-1.0, 1.0), (-0.3, 6.0), (-3.0, np.inf), (0.0, 1 / 3), (-np.inf, 2.0), (-7.0, 0.0)]
)
@pytest.mark.parametrize("seed", range(20))
def test_no_integer_stands_for_a_number_beyond_the_bounds(bounds: tuple[float, float], seed: int) -> None:
    low, high = bounds
    random = np.random.default_rng(seed)
    seen = np.clip(random.normal(0, 4, 100), low, high)
    params = params_from_range(Range(float(seen.min()), float(seen.max())), GRID)
    result = narrowed(params, Range(low, high))
    held = dequantize(np.arange(256).astype(np.uint8), result)
    assert np.float32(low) <= held.min()
    assert held.max() <= np.float32(high)
    assert held.min() <= seen.min() + 2 * float(params.scale)
    assert held.max() >= seen.max() - 2 * float(params.scale)
    assert 0.0 in held


def test_a_range_within_the_bounds_stays() -> None:
    params = params_from_range(Range(-1.0, 2.0), GRID)
    assert narrowed(params, Range(-6.0, 6.0)) is params


def test_bounds_that_do_not_hold_zero_change_nothing() -> None:
    params = params_from_range(Range(1.0, 2.0), GRID)
    assert narrowed(params, Range(1.0, 2.0)) is params
