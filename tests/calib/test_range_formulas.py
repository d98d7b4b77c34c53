"""Each range method gives what its formula, written out over the raw values, gives."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from qtool.calib.affine import Range, dequantize, params_from_range, quantize
from qtool.calib.grid import Grid
from qtool.calib.ranges.entropy import Entropy
from qtool.calib.ranges.min_max import MinMax
from qtool.calib.ranges.moving_average import MovingAverage
from qtool.calib.ranges.mse import MeanSquaredError
from qtool.calib.ranges.percentile import Percentile
from qtool.calib.statistics import TensorStatistics

_U8 = Grid(bits=8, signed=False, symmetric=False)
_S8 = Grid(bits=8, signed=True, symmetric=True)


def _seen(samples: npt.NDArray[np.float32]) -> TensorStatistics:
    """One batch a row."""
    statistics = TensorStatistics()
    for row in samples:
        statistics.add(row, row)
    return statistics


@pytest.fixture
def samples() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(0.4, 1.5, (20, 5000)).astype(np.float32)


def test_minmax_takes_the_exact_extremes(samples: npt.NDArray[np.float32]) -> None:
    assert MinMax().span(_seen(samples), _U8) == Range(float(samples.min()), float(samples.max()))


def test_the_moving_average_is_the_mean_of_the_batches_extremes(samples: npt.NDArray[np.float32]) -> None:
    span = MovingAverage().span(_seen(samples), _U8)
    assert span.low == pytest.approx(float(samples.min(axis=1).mean(dtype=np.float64)))
    assert span.high == pytest.approx(float(samples.max(axis=1).mean(dtype=np.float64)))


def test_the_spread_adds_standard_deviations_of_the_batches_extremes(samples: npt.NDArray[np.float32]) -> None:
    span = MovingAverage(spread=0.5).span(_seen(samples), _U8)
    lows, highs = samples.min(axis=1).astype(np.float64), samples.max(axis=1).astype(np.float64)
    assert span.low == pytest.approx(lows.mean() - 0.5 * lows.std())
    assert span.high == pytest.approx(highs.mean() + 0.5 * highs.std())


def test_a_wide_spread_ends_at_the_extremes(samples: npt.NDArray[np.float32]) -> None:
    statistics = _seen(samples)
    assert MovingAverage(spread=100.0).span(statistics, _U8) == MinMax().span(statistics, _U8)


@pytest.mark.parametrize("keep", [0.9, 0.99, 0.999, 0.9999])
def test_a_percentile_lies_at_its_rank_within_a_256th(samples: npt.NDArray[np.float32], keep: float) -> None:
    span = Percentile(keep=keep).span(_seen(samples), _U8)
    ordered = np.sort(samples.reshape(-1)).astype(np.float64)
    for share, end in ((1.0 - keep, span.low), (keep, span.high)):
        rank = round(share * ordered.size)
        # At a whole rank both neighbours are right; a bin is a 256th of its values wide.
        below, above = ordered[rank - 1], ordered[rank]
        assert below - abs(below) / 256 <= end <= above + abs(above) / 256


def test_keeping_every_value_is_minmax(samples: npt.NDArray[np.float32]) -> None:
    statistics = _seen(samples)
    assert Percentile(keep=1.0).span(statistics, _U8) == MinMax().span(statistics, _U8)


def test_a_percentile_clips_the_share_it_was_asked_to(samples: npt.NDArray[np.float32]) -> None:
    span = Percentile(keep=0.99).span(_seen(samples), _U8)
    assert np.mean(samples > span.high) == pytest.approx(0.01, rel=0.1)
    assert np.mean(samples < span.low) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("grid", [_U8, _S8])
@pytest.mark.parametrize("shape", ["normal", "laplace", "relu", "sparse"])
def test_mse_is_as_good_as_the_best_of_a_fine_search_on_the_raw_values(grid: Grid, shape: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.normal(0.0, 1.0, 40_000),
        "laplace": rng.laplace(0.2, 1.0, 40_000),
        "relu": np.maximum(rng.laplace(0.0, 1.0, 40_000), 0.0),
        "sparse": np.where(rng.random(40_000) < 0.95, 0.0, rng.normal(1.0, 2.0, 40_000)),
    }[shape].astype(np.float32)

    def error(span: Range) -> float:
        params = params_from_range(span, grid)
        return float(np.mean((dequantize(quantize(values, params), params).astype(np.float64) - values) ** 2))

    low, high = min(float(values.min()), 0.0), float(values.max())
    best = min(error(Range(low * a, high * b)) for a, b in itertools.product(np.linspace(0.2, 1.0, 17), repeat=2))
    assert error(MeanSquaredError().span(_seen(values[np.newaxis]), grid)) <= 1.06 * best


def test_more_candidates_do_not_make_mse_worse(samples: npt.NDArray[np.float32]) -> None:
    def error(candidates: int) -> float:
        params = params_from_range(MeanSquaredError(candidates=candidates).span(_seen(samples), _U8), _U8)
        return float(np.mean((dequantize(quantize(samples, params), params).astype(np.float64) - samples) ** 2))

    assert error(80) <= 1.02 * error(5)


def test_entropy_keeps_an_even_distribution_whole() -> None:
    values = np.random.default_rng(2).uniform(-3.0, 3.0, (10, 50_000)).astype(np.float32)
    span = Entropy().span(_seen(values), _U8)
    assert span.low < -2.9
    assert span.high > 2.9


def test_entropy_clips_a_long_tail_but_keeps_nearly_all_values() -> None:
    values = np.random.default_rng(2).normal(0.0, 1.0, (10, 50_000)).astype(np.float32)
    values[0, :5] = 40.0
    span = Entropy().span(_seen(values), _U8)
    assert span.high < 20.0
    assert np.mean((values < span.low) | (values > span.high)) < 0.01


def test_entropy_threshold_bounds_both_sides_alike() -> None:
    values = np.random.default_rng(2).normal(0.0, 1.0, (10, 50_000)).astype(np.float32)
    values[0, :5] = 40.0
    values[1, :5] = -40.0
    span = Entropy().span(_seen(values), _U8)
    assert span.low == pytest.approx(-span.high, rel=0.02)
