"""Statistics of a tensor over a calibration pass, in bounded memory and mergeable without loss.

The histogram's bins do not depend on the data: a float32's sign, exponent and eight leading mantissa bits are its bin,
so a bin is never wider than 1/256 of the values in it. Nothing has to be re-binned while data arrives, and two
histograms merge by adding their counts. Sums over batches are exact. So statistics are the same to the last bit for any
order of the batches, and for any split of them into parts that are merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.bin_counts import BinCounts, Occupied
from qtool.calib.exact_sums import ExactSums

MANTISSA_BITS = 8
_SHIFT = 23 - MANTISSA_BITS
# So many values per channel and sample are enough for a mean, since adjacent pixels are similar.
_RUN_VALUES = 512
_BLOCK_VALUES = 1 << 16
_BINS_PER_SIGN = 1 << (31 - _SHIFT)
BINS = 2 * _BINS_PER_SIGN


@dataclass(frozen=True)
class Histogram:
    """The occupied bins of a tensor's values, from the lowest to the highest.

    Attributes:
        low: float64, (bins,): where each bin begins.
        high: float64, (bins,): where each bin ends; bins do not overlap.
        counts: int64, (bins,): values seen in each.
    """

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @cached_property
    def centers(self) -> npt.NDArray[np.float64]:
        """The middle of each bin."""
        return (self.low + self.high) / 2.0

    @cached_property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())


@dataclass
class TensorStatistics:
    """Collects one tensor's values.

    Attributes:
        minimum: the smallest observed value, exact.
        maximum: the largest observed value, exact.
        batches: how many batches had at least one value.
        values: how many values were observed.
        infinite: how many values were infinite; nothing else includes them.
        extremes: how many smallest and largest values were summed: one per sample where the first axis holds the
            samples, otherwise one per batch.
        extreme_sums: (4,): the sums of the smallest values, of the largest, and of the squares of both.
        channel_axis: the axis whose channels are summed, from the front or, negative, from the end; None for none.
        channel_sums: (channels,): sum of each channel's values; of no channels until a batch came.
        channel_values: how many values of each channel were summed.
        bins: counted values by bin.
    """

    minimum: float = np.inf
    maximum: float = -np.inf
    batches: int = 0
    values: int = 0
    infinite: int = 0
    extremes: int = 0
    extreme_sums: ExactSums = field(default_factory=lambda: ExactSums(4))
    channel_axis: int | None = None
    channel_sums: ExactSums = field(default_factory=lambda: ExactSums(0))
    channel_values: int = 0
    bins: BinCounts = field(default_factory=lambda: BinCounts(BINS))

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The counted values of every bin, int64, (BINS,)."""
        return self.bins.dense()

    def add(
        self,
        batch: npt.NDArray[np.floating[Any]],
        counted: npt.NDArray[np.floating[Any]],
        *,
        samples: int = 1,
    ) -> bool:
        """Adds one batch; returns False, without adding anything, when it holds a NaN.

        Args:
            batch: all its values, any shape, for the extremes.
            counted: the part of them for the histogram.
            samples: how many consecutive samples ``batch`` holds.
        """
        if batch.size == 0:
            return True
        rows = batch.reshape(samples, -1)
        # The sum turns a negative zero, which no order of the values decides about, into zero.
        ends = _ends(rows).astype(np.float64) + 0.0
        if not np.isfinite(ends).all():
            if np.isnan(ends).any():
                return False
            finite = batch[np.isfinite(batch)]
            self.infinite += batch.size - finite.size
            return self.add(finite, counted[np.isfinite(counted)])
        self.values += batch.size
        self.batches += 1
        self.minimum = min(self.minimum, float(ends[0].min()))
        self.maximum = max(self.maximum, float(ends[1].max()))
        self.extremes += samples
        self.extreme_sums.add(np.concatenate([ends, ends * ends]).T)
        bits = np.ascontiguousarray(counted, dtype=np.float32).reshape(-1).view(np.uint32)
        self.bins.count((bits >> np.uint32(_SHIFT)).astype(np.int64))
        return True

    def add_channels(self, batch: npt.NDArray[np.floating[Any]]) -> bool:
        """Adds up each channel of a batch with the tensor's own axes.

        Where the number of channels changes between batches, or a sum leaves float32, there is no mean: then no sums
        are kept, as for a tensor without such an axis.

        Returns:
            Whether ``channel_axis`` still has channels.
        """
        axis = self.channel_axis
        if axis is None or not -batch.ndim <= axis < batch.ndim:
            self._drop_channels()
            return False
        sums = _channel_sums(batch, axis % batch.ndim)
        if self.channel_values == 0:
            self.channel_sums = ExactSums(sums.size)
        if sums.size != self.channel_sums.size or not np.isfinite(sums).all():
            self._drop_channels()
            return False
        self.channel_sums.add(sums[np.newaxis])
        self.channel_values += batch.size // max(sums.size, 1)
        return True

    @property
    def channel_means(self) -> npt.NDArray[np.float64] | None:
        """The mean of each channel, float64, (channels,); None where channels were not summed."""
        return None if self.channel_values == 0 else self.channel_sums.rounded() / self.channel_values

    @property
    def minimum_sum(self) -> float:
        """The sum of the smallest values."""
        return float(self.extreme_sums.rounded()[0])

    @property
    def maximum_sum(self) -> float:
        """The sum of the largest values."""
        return float(self.extreme_sums.rounded()[1])

    @property
    def minimum_square_sum(self) -> float:
        """The sum of the squares of the smallest values."""
        return float(self.extreme_sums.rounded()[2])

    @property
    def maximum_square_sum(self) -> float:
        """The sum of the squares of the largest values."""
        return float(self.extreme_sums.rounded()[3])

    def merge(self, other: TensorStatistics) -> None:
        """Merges the statistics of another pass over the same tensor, as if both had been one."""
        self._merge_channels(other)
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.batches += other.batches
        self.values += other.values
        self.infinite += other.infinite
        self.extremes += other.extremes
        self.extreme_sums.merge(other.extreme_sums)
        self.bins.put(other.bins.occupied())

    def _merge_channels(self, other: TensorStatistics) -> None:
        if self.channel_axis != other.channel_axis:
            # The one that has none had batches whose channels do not fit together.
            if other.values and self.values:
                self._drop_channels()
            elif other.values:
                self.channel_axis, self.channel_values = other.channel_axis, other.channel_values
                self.channel_sums = other.channel_sums.copy()
        elif self.channel_values == 0:
            self.channel_sums, self.channel_values = other.channel_sums.copy(), other.channel_values
        elif other.channel_values and self.channel_sums.size != other.channel_sums.size:
            self._drop_channels()
        elif other.channel_values:
            self.channel_sums.merge(other.channel_sums)
            self.channel_values += other.channel_values

    def _drop_channels(self) -> None:
        self.channel_axis, self.channel_sums, self.channel_values = None, ExactSums(0), 0

    def above(self, low: float) -> TensorStatistics:
        """Returns the statistics with every value below ``low`` raised to ``low``; without channel means."""
        if self.minimum >= low:
            return self
        histogram, ordered = self.histogram(), self._by_value()
        stays = histogram.high > low
        target = int(np.float32(low).reshape(1).view(np.uint32)[0] >> np.uint32(_SHIFT))
        bins = BinCounts(BINS)
        bins.put(Occupied(ordered.bins[stays], ordered.counts[stays]))
        bins.put(Occupied(np.array([target]), ordered.counts[~stays].sum(keepdims=True)))
        mean = max(self.minimum_sum / max(self.extremes, 1), low)
        return replace(
            self,
            minimum=low,
            maximum=max(self.maximum, low),
            extreme_sums=ExactSums.of(
                np.array([mean, 0.0, mean * mean, 0.0]) * self.extremes
                + np.array([0.0, self.maximum_sum, 0.0, self.maximum_square_sum])
            ),
            bins=bins,
            channel_axis=None,
            channel_sums=ExactSums(0),
            channel_values=0,
        )

    def histogram(self) -> Histogram:
        """Returns the occupied bins in order of value; the outermost ones end at the exact extremes."""
        ordered = self._by_value()
        negative = ordered.bins >= _BINS_PER_SIGN
        inner, outer = _edges(np.where(negative, ordered.bins - _BINS_PER_SIGN, ordered.bins))
        low, high = np.where(negative, -outer, inner), np.where(negative, -inner, outer)
        low, high = np.clip(low, self.minimum, self.maximum), np.clip(high, self.minimum, self.maximum)
        return Histogram(low, high, ordered.counts)

    def _by_value(self) -> Occupied:
        """Returns the occupied bins in order of value: the negative ones from the largest magnitude on come first."""
        occupied = self.bins.occupied()
        first_negative = int(np.searchsorted(occupied.bins, _BINS_PER_SIGN))
        bins, counts = (
            np.concatenate([part[first_negative:][::-1], part[:first_negative]])
            for part in (occupied.bins, occupied.counts)
        )
        return Occupied(bins, counts)


def _ends(rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Returns the smallest and the largest value of each row, (2, rows); NaN where it holds one.

    Long rows are passed in blocks that stay in the processor's cache from one pass to the other.
    """
    if rows.shape[1] <= _BLOCK_VALUES:
        return np.stack([rows.min(axis=1), rows.max(axis=1)])
    starts = range(0, rows.shape[1], _BLOCK_VALUES)
    blocks = [(block.min(), block.max()) for row in rows for block in (row[at : at + _BLOCK_VALUES] for at in starts)]
    by_row = np.array(blocks, rows.dtype).reshape(len(rows), len(starts), 2)
    return np.stack([by_row[:, :, 0].min(axis=1), by_row[:, :, 1].max(axis=1)])


def _channel_sums(batch: npt.NDArray[np.floating[Any]], axis: int) -> npt.NDArray[np.float64]:
    """Returns the sum of each channel along ``axis``, float64, (channels,).

    Long runs, such as the pixels of an image's channel, are sampled at some hundred values. Runs are summed in float32
    by einsum, which is several times faster than numpy's own sum and, unlike a matrix product, starts no threads next
    to those of the runtime; then they are summed in float64.
    """
    blocks = batch.reshape(int(np.prod(batch.shape[:axis])), batch.shape[axis], -1)
    step = max(blocks.shape[2] // _RUN_VALUES, 1)
    if step > 1:
        share = blocks[:, :, step // 2 :: step]
        scaled: npt.NDArray[np.float64] = _channel_sums(share, 1) * (blocks.shape[2] / share.shape[2])
        return scaled
    runs = np.einsum("bcx->bc", blocks) if blocks.shape[2] > 1 else np.einsum("bcx->cx", blocks).T
    sums: npt.NDArray[np.float64] = runs.sum(axis=0, dtype=np.float64)
    return sums


def _edges(keys: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the magnitudes at which the bins of ``keys``, without their sign, begin and end."""
    inner = (keys.astype(np.uint32) << np.uint32(_SHIFT)).view(np.float32).astype(np.float64)
    outer = ((keys.astype(np.uint32) + np.uint32(1)) << np.uint32(_SHIFT)).view(np.float32).astype(np.float64)
    return inner, outer
