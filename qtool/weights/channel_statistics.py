"""Collects the range and the power of tensors' channels, for cross-layer equalization."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.collect import Runner
from qtool.calib.specs import Feed
from qtool.weights.scaling_regions import ScalingRegion

Floats = npt.NDArray[np.float64]

# Unseen data may exceed a channel's peak by at least this factor, and by so many standard deviations of the batches.
_LEAST_HEADROOM = 1.2
_DEVIATIONS = 5.0
# Headroom of a channel that was always zero.
_UNKNOWN_HEADROOM = 1e6


@dataclass(slots=True)
class ChannelStatistics:
    """Statistics of one tensor's channels; all arrays are float64, (channels,).

    Attributes:
        lows: the smallest values, at most 0.
        highs: the largest values, at least 0.
        squares: sums of squares.
        others: how many values were not zero.
        peaks: sums over batches of the largest magnitude in each.
        peak_squares: sums of the squares of these.
        count: how many values each channel had.
        batches: how many batches.
    """

    lows: Floats
    highs: Floats
    squares: Floats
    others: Floats
    peaks: Floats
    peak_squares: Floats
    count: int = 0
    batches: int = 0

    @staticmethod
    def of(channels: int) -> ChannelStatistics:
        """Returns empty statistics."""
        zeros = np.zeros(channels)
        return ChannelStatistics(zeros, zeros, zeros, zeros, zeros, zeros)

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Adds ``rows``, (channels, values)."""
        low, high = rows.min(axis=1, initial=0.0), rows.max(axis=1, initial=0.0)
        peak = np.maximum(-low, high).astype(np.float64)
        self.lows, self.highs = np.minimum(self.lows, low), np.maximum(self.highs, high)
        self.peaks, self.peak_squares = self.peaks + peak, self.peak_squares + peak**2
        self.batches += 1
        self.squares = self.squares + np.einsum("cv,cv->c", rows, rows).astype(np.float64)
        self.others = self.others + np.count_nonzero(rows, axis=1)
        self.count += rows.shape[1]

    @property
    def finite(self) -> bool:
        """Whether there were values, and all of them were finite."""
        return self.batches > 0 and bool(np.isfinite(self.squares).all())

    @property
    def headroom(self) -> Floats:
        """By what factor each channel may exceed its peak on other data, from the variation between batches."""
        seen = np.maximum(-self.lows, self.highs)
        mean = self.peaks / max(self.batches, 1)
        spread = np.sqrt(np.maximum(self.peak_squares / max(self.batches, 1) - mean**2, 0.0))
        further = (mean + _DEVIATIONS * spread) / np.maximum(seen, 1e-30)
        return np.where(seen > 0.0, np.maximum(further, _LEAST_HEADROOM), _UNKNOWN_HEADROOM)


def gather_channels(
    runner: Runner, feeds: Iterable[Feed], regions: Sequence[ScalingRegion]
) -> dict[str, ChannelStatistics]:
    """Returns channel statistics of every tensor that ``runner`` returns."""
    places = {name: (axis, region.channels) for region in regions for name, axis in region.axes.items()}
    found: dict[str, ChannelStatistics] = {}
    for feed in feeds:
        for name, value in runner.run(feed).items():
            axis, channels = places[name]
            rows = np.moveaxis(value, axis, 0).reshape(channels, -1)
            found.setdefault(name, ChannelStatistics.of(channels)).add(rows)
    return found
