"""Moving-average calibration: the mean range over samples."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.calib.affine import Range
from qtool.calib.errors import CalibError
from qtool.calib.grid import Grid
from qtool.calib.statistics import TensorStatistics


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """Takes the mean, over samples, of each sample's own extremes.

    An exponential moving average would depend on the order of the samples; this is its mean over all orders.

    Attributes:
        spread: how many standard deviations of the samples' extremes to add on each side; limited by the extremes.
    """

    spread: float = 0.0

    def __post_init__(self) -> None:
        """Rejects a negative spread.

        Raises:
            CalibError: the spread is negative.
        """
        if not self.spread >= 0.0:
            raise CalibError(f"a spread of {self.spread} is negative", fix="give 0 or more standard deviations")

    def span(self, statistics: TensorStatistics, grid: Grid) -> Range:
        """Returns mean -/+ spread * standard deviation of the samples' minima and maxima."""
        count = statistics.extremes
        low, high = statistics.minimum_sum / count, statistics.maximum_sum / count
        low_variance = max(statistics.minimum_square_sum / count - low * low, 0.0)
        high_variance = max(statistics.maximum_square_sum / count - high * high, 0.0)
        return Range(
            max(low - self.spread * low_variance**0.5, statistics.minimum),
            min(high + self.spread * high_variance**0.5, statistics.maximum),
        )
