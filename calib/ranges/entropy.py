"""Entropy calibration: the range with the least Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import Range
from qtool.calib.errors import CalibError
from qtool.calib.grid import Grid
from qtool.calib.statistics import Histogram, TensorStatistics

# Thresholds tried in each of two rounds, the second around the best of the first.
_CANDIDATES, _ROUNDS = 24, 2
# A bin is a peak when it exceeds the median of itself and so many bins on each side by this factor.
_PEAK, _AROUND = 3.0, 6
# The histogram's bin of exact zeros also holds subnormal numbers.
_TINY = 1.5e-38


@dataclass(frozen=True, slots=True)
class Entropy:
    """Searches the clipping threshold whose quantized distribution is nearest to the original one.

    The distance is the Kullback-Leibler divergence, after S. Migacz, 8-bit Inference with TensorRT (GTC 2017). The
    threshold T bounds magnitudes: the range is the data's own, clipped to -T..T.

    Attributes:
        bins: how many even bins the values are spread over before the search.
    """

    bins: int = 1024

    def __post_init__(self) -> None:
        """Rejects fewer bins than a grid has integers.

        Raises:
            CalibError: there are fewer than 512 bins.
        """
        if self.bins < 512:
            raise CalibError(f"{self.bins} bins are too few for the entropy method", fix="use 512 bins or more")

    def span(self, statistics: TensorStatistics, grid: Grid) -> Range:
        """Returns the clipped range with the least divergence."""
        low, high = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
        if low == high:
            return Range(statistics.minimum, statistics.maximum)
        edges = np.linspace(low, high, self.bins + 1)
        counts = _without_peaks(_spread_evenly(_without_zeros(statistics.histogram()), edges))
        if not counts.any():
            return Range(low, high)
        reach = max(-low, high)
        levels = grid.high - grid.low + 1
        best = (float(np.inf), 0, self.bins)
        center = reach
        narrowest, widest = reach * levels / self.bins, reach
        for _ in range(_ROUNDS):
            # From the widest to the narrowest, so that the one that clips least wins a tie.
            thresholds = np.linspace(widest, narrowest, _CANDIDATES)
            first = np.searchsorted(edges, np.maximum(low, -thresholds), side="right") - 1
            last = np.searchsorted(edges, np.minimum(high, thresholds), side="left")
            divergences = _divergences(counts, first, last, levels)
            least = int(divergences.argmin())
            if divergences[least] < best[0]:
                best, center = (float(divergences[least]), int(first[least]), int(last[least])), thresholds[least]
            spacing = thresholds[0] - thresholds[1]
            narrowest, widest = max(center - spacing, narrowest), min(center + spacing, widest)
        return Range(float(edges[best[1]]), float(edges[best[2]]))


def _without_zeros(histogram: Histogram) -> Histogram:
    """Leaves out exact zeros: every grid represents them exactly, and the peak of a ReLU would outweigh the rest."""
    is_zero = (np.abs(histogram.low) < _TINY) & (np.abs(histogram.high) < _TINY)
    return Histogram(histogram.low, histogram.high, np.where(is_zero, 0, histogram.counts))


def _without_peaks(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Limits single bins that exceed their surroundings.

    One frequent value, such as that of a uniform background, needs no resolution, but spread over a whole step it
    would look like a large loss of information.
    """
    around = np.lib.stride_tricks.sliding_window_view(np.pad(counts, _AROUND, mode="edge"), 2 * _AROUND + 1)
    usual = np.median(around, axis=1)
    return np.where(usual > 0, np.minimum(counts, _PEAK * usual), counts)


def _spread_evenly(histogram: Histogram, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rebins into even bins; values are spread evenly within their old bins, single values are not spread."""
    below = np.concatenate([[0.0], np.cumsum(histogram.counts, dtype=np.float64)])
    # The histogram skips empty bins: both ends of each bin are nodes, so that nothing is spread over a gap.
    nodes = np.stack([histogram.low, histogram.high], axis=1).reshape(-1)
    heights = np.stack([below[:-1], below[1:]], axis=1).reshape(-1)
    cumulative = np.interp(edges, nodes, heights, left=0.0, right=below[-1])
    cumulative[-1] = below[-1]
    return np.diff(cumulative)


def _divergences(
    counts: npt.NDArray[np.float64], first: npt.NDArray[np.intp], last: npt.NDArray[np.intp], levels: int
) -> npt.NDArray[np.float64]:
    """Returns KL(P || Q) of several clippings to the bins from ``first`` up to, but without, ``last``, (clippings,).

    P is the data with outliers moved to the ends, Q without them on ``levels`` levels.
    """
    clippings, bins = np.arange(len(first)), np.arange(len(counts))
    below = np.concatenate([[0.0], np.cumsum(counts)])
    inside = np.where((bins >= first[:, np.newaxis]) & (bins < last[:, np.newaxis]), counts, 0.0)
    reference = inside.copy()
    reference[clippings, first] += below[first]
    reference[clippings, last - 1] += below[-1] - below[last]
    widths = (last - first)[:, np.newaxis]
    groups = (bins - first[:, np.newaxis]) * np.minimum(levels, widths) // widths
    occupied = reference > 0
    # Bins outside are not occupied, whatever group they are counted to.
    group = np.clip(groups, 0, levels - 1) + clippings[:, np.newaxis] * levels
    sums = np.bincount(group.reshape(-1), weights=inside.reshape(-1), minlength=len(first) * levels)
    sharing = np.bincount(group[occupied], minlength=len(first) * levels)
    quantized = np.where(occupied, (sums / np.maximum(sharing, 1))[group], 0.0)
    mass = quantized.sum(axis=1, keepdims=True)
    p, q = reference / reference.sum(axis=1, keepdims=True), quantized / np.where(mass > 0.0, mass, 1.0)
    # An occupied bin that is empty in Q would have infinite divergence; a small floor keeps it finite.
    terms = np.zeros_like(p)
    terms[occupied] = p[occupied] * np.log(p[occupied] / np.maximum(q[occupied], 1e-9))
    return np.where(mass[:, 0] > 0.0, terms.sum(axis=1), np.inf)
