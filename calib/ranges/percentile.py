"""Percentile calibration: the range that clips a fixed share of the values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.calib.affine import Range
from qtool.calib.errors import CalibError
from qtool.calib.grid import Grid
from qtool.calib.statistics import TensorStatistics


@dataclass(frozen=True, slots=True)
class Percentile:
    """Clips, on each side, the share 1 - ``keep`` of the values.

    Attributes:
        keep: the share of values kept on each side, above 0.5 and at most 1.
    """

    keep: float = 0.9999

    def __post_init__(self) -> None:
        """Rejects a share out of bounds.

        Raises:
            CalibError: the share is out of bounds.
        """
        if not 0.5 < self.keep <= 1.0:
            raise CalibError(
                f"a percentile of {self.keep} is out of range", fix="give a share above 0.5, up to 1, such as 0.9999"
            )

    def span(self, statistics: TensorStatistics, grid: Grid) -> Range:
        """Returns the two quantiles, interpolated evenly within their bins."""
        histogram = statistics.histogram()
        below = np.concatenate([[0], np.cumsum(histogram.counts)])
        ends = []
        for share in (1.0 - self.keep, self.keep):
            wanted = share * histogram.total
            bin_index = int(np.clip(np.searchsorted(below, wanted, side="right") - 1, 0, len(histogram.counts) - 1))
            part = (wanted - below[bin_index]) / histogram.counts[bin_index]
            ends.append(float(histogram.low[bin_index] + part * (histogram.high[bin_index] - histogram.low[bin_index])))
        return Range(max(ends[0], statistics.minimum), min(ends[1], statistics.maximum))
