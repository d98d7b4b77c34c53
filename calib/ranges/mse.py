"""MSE calibration: the range with the least expected squared error of the tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import Range
from qtool.calib.errors import CalibError
from qtool.calib.grid import Grid
from qtool.calib.statistics import Histogram, TensorStatistics

_REFINEMENTS = 3


@dataclass(frozen=True, slots=True)
class MeanSquaredError:
    """Searches both ends for the least sum of clipping error and rounding error.

    The clipping error comes from the histogram. The rounding error of a value inside is step^2 / 12, that of a value
    spread evenly over its step (Widrow and Kollar, Quantization Noise, 2008, chapter 1); exact zeros have none, since
    zero lies on the grid.

    Attributes:
        candidates: how many positions are tried for each end, in each round of a search that becomes finer.
    """

    candidates: int = 40

    def __post_init__(self) -> None:
        """Rejects a search without a choice.

        Raises:
            CalibError: there are fewer than two candidates.
        """
        if self.candidates < 2:
            raise CalibError(f"{self.candidates} candidates leave no choice", fix="search at least 2 candidates")

    def span(self, statistics: TensorStatistics, grid: Grid) -> Range:
        """Returns the best pair of ends; ends on the far side of zero stay at zero."""
        histogram = statistics.histogram()
        low_end, high_end = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
        if low_end == high_end:
            return Range(statistics.minimum, statistics.maximum)
        error = _Error.of(histogram)
        low_window, high_window = (low_end, 0.0), (0.0, high_end)
        best = (low_end, high_end)
        for _ in range(_REFINEMENTS):
            lows = np.unique(np.linspace(*low_window, self.candidates))
            highs = np.unique(np.linspace(*high_window, self.candidates))
            low_grid, high_grid = (axis.reshape(-1) for axis in np.meshgrid(lows, highs, indexing="ij"))
            best = error.best(low_grid, high_grid, grid)
            low_step, high_step = _spacing(lows), _spacing(highs)
            low_window = (max(best[0] - low_step, low_end), min(best[0] + low_step, 0.0))
            high_window = (max(best[1] - high_step, 0.0), min(best[1] + high_step, high_end))
        return Range(*best)


def _spacing(positions: npt.NDArray[np.float64]) -> float:
    return float(positions[1] - positions[0]) if len(positions) > 1 else 0.0


@dataclass(frozen=True)
class _Error:
    """Cumulative moments of a histogram, from which the error of any range follows in constant time."""

    edges: npt.NDArray[np.float64]
    count: npt.NDArray[np.float64]
    first: npt.NDArray[np.float64]
    second: npt.NDArray[np.float64]
    zeros: float

    @staticmethod
    def of(histogram: Histogram) -> _Error:
        counts, centers = histogram.counts.astype(np.float64), histogram.centers
        moments = [np.concatenate([[0.0], np.cumsum(counts * centers**power)]) for power in (0, 1, 2)]
        zeros = float(counts[(histogram.low <= 0.0) & (histogram.high < 1e-37) & (histogram.high >= 0.0)].sum())
        return _Error(centers, moments[0], moments[1], moments[2], zeros)

    def best(self, lows: npt.NDArray[np.float64], highs: npt.NDArray[np.float64], grid: Grid) -> tuple[float, float]:
        """Returns the pair with the least error; the widest of a tie."""
        if grid.symmetric:
            reach = np.maximum(-lows, highs)
            steps, lows, highs = reach / (grid.high - grid.middle), -reach, reach
        else:
            steps = (highs - lows) / (grid.high - grid.low)
        below, above = np.searchsorted(self.edges, lows), np.searchsorted(self.edges, highs, side="right")
        clipped_low = self.second[below] - 2 * lows * self.first[below] + lows**2 * self.count[below]
        n, s, q = (moment[-1] - moment[above] for moment in (self.count, self.first, self.second))
        clipped_high = q - 2 * highs * s + highs**2 * n
        inside = np.maximum(self.count[above] - self.count[below] - self.zeros, 0.0)
        total = np.where(steps > 0, clipped_low + clipped_high + inside * steps**2 / 12.0, np.inf)
        least = np.flatnonzero(total == total.min())
        index = int(least[(lows - highs)[least].argmin()])
        return float(lows[index]), float(highs[index])
