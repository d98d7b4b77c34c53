"""The range of a typical batch."""

from __future__ import annotations

from dataclasses import dataclass

from calib.affine import Range
from calib.errors import CalibError
from calib.grid import Grid
from calib.statistics import TensorStatistics


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """Takes the mean, over batches, of each batch's own extremes.

    An exponential moving average would depend on the order of the batches; this is what it tends to over many orders.

    Attributes:
        spread: how many standard deviations of the batches' extremes to add on each side; never past the extremes.
    """

    spread: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a negative spread.

        Raises:
            CalibError: the spread is negative.
        """
        if not self.spread >= 0.0:
            raise CalibError(f"a spread of {self.spread} is negative", fix="give 0 or more standard deviations")

    def span(self, statistics: TensorStatistics, grid: Grid) -> Range:
        """Returns mean -/+ spread * standard deviation of the batches' minima and maxima."""
        batches = statistics.batches
        low, high = statistics.minimum_sum / batches, statistics.maximum_sum / batches
        low_variance = max(statistics.minimum_square_sum / batches - low * low, 0.0)
        high_variance = max(statistics.maximum_square_sum / batches - high * high, 0.0)
        return Range(
            max(low - self.spread * low_variance**0.5, statistics.minimum),
            min(high + self.spread * high_variance**0.5, statistics.maximum),
        )
