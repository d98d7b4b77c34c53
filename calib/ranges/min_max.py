"""Min-max calibration: the range that clips nothing."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.calib.affine import Range
from qtool.calib.grid import Grid
from qtool.calib.statistics import TensorStatistics


@dataclass(frozen=True, slots=True)
class MinMax:
    """Takes the smallest and the largest observed value."""

    def span(self, statistics: TensorStatistics, grid: Grid) -> Range:
        """Returns the exact extremes."""
        return Range(statistics.minimum, statistics.maximum)
