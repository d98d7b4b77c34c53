"""What one pass over the data remembers of a tensor, in bounded memory and in a form that merges exactly.

The histogram's bins are fixed before any data is seen: a float32's sign, exponent and eight leading mantissa bits are
its bin, so a bin is never wider than 1/256 of the values in it. Nothing has to be re-binned while data arrives, and two
histograms merge by adding their counts, whatever the order or the split of the batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

MANTISSA_BITS = 8
_SHIFT = 23 - MANTISSA_BITS
# So many values of a channel and sample give its mean; neighbouring pixels are much alike.
_RUN_VALUES = 512
_BINS_PER_SIGN = 1 << (31 - _SHIFT)
BINS = 2 * _BINS_PER_SIGN


@dataclass(frozen=True)
class Histogram:
    """Holds the occupied bins of a tensor's values, from the lowest to the highest.

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
    """Gathers one tensor's values.

    Attributes:
        minimum: the smallest value seen, exact.
        maximum: the largest value seen, exact.
        batches: how many batches had at least one value.
        values: how many values passed by.
        infinite: how many values were infinite; they are left out of everything else.
        extremes: how many smallest and largest values were summed: one a sample where the first axis holds the
            samples, otherwise one a batch.
        minimum_sum: sum of the smallest values.
        maximum_sum: sum of the largest values.
        minimum_square_sum: sum of their squares.
        maximum_square_sum: sum of their squares.
        channel_axis: the axis whose channels are summed, from the front or, negative, from the end; None for none.
        channel_sums: float64, (channels,): sum of each channel's values; empty until a batch came.
        channel_values: how many values of each channel were summed.
        counts: int64, (BINS,): counted values by bin.
    """

    minimum: float = np.inf
    maximum: float = -np.inf
    batches: int = 0
    values: int = 0
    infinite: int = 0
    extremes: int = 0
    minimum_sum: float = 0.0
    maximum_sum: float = 0.0
    minimum_square_sum: float = 0.0
    maximum_square_sum: float = 0.0
    channel_axis: int | None = None
    channel_sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    channel_values: int = 0
    # Untouched pages of a fresh zeros() take no memory, so a tensor pays only for the magnitudes it has.
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(
        self,
        batch: npt.NDArray[np.floating[Any]],
        counted: npt.NDArray[np.floating[Any]],
        *,
        samples: int = 1,
    ) -> bool:
        """Takes in one batch; returns False, having taken nothing, when it holds a NaN.

        Args:
            batch: all its values, any shape: the extremes come from here.
            counted: the part of them that goes into the histogram.
            samples: how many samples lie one after the other in ``batch``.
        """
        if batch.size == 0:
            return True
        if samples == 1:
            lows, highs = [float(batch.min())], [float(batch.max())]
        else:
            rows = batch.reshape(samples, -1)
            lows, highs = rows.min(axis=1).tolist(), rows.max(axis=1).tolist()
        if any(map(math.isnan, lows)):
            return False
        if not all(map(math.isfinite, lows + highs)):
            finite = batch[np.isfinite(batch)]
            self.infinite += batch.size - finite.size
            return self.add(finite, counted[np.isfinite(counted)])
        self.values += batch.size
        self.batches += 1
        self.minimum, self.maximum = min(self.minimum, *lows), max(self.maximum, *highs)
        self.extremes += samples
        self.minimum_sum += sum(lows)
        self.maximum_sum += sum(highs)
        self.minimum_square_sum += sum(low * low for low in lows)
        self.maximum_square_sum += sum(high * high for high in highs)
        bits = np.ascontiguousarray(counted, dtype=np.float32).reshape(-1).view(np.uint32)
        np.add.at(self.counts, (bits >> np.uint32(_SHIFT)).astype(np.int64), 1)
        return True

    def add_channels(self, batch: npt.NDArray[np.floating[Any]]) -> bool:
        """Adds up each channel of a batch with the tensor's own axes.

        Channels that change in number between batches have no mean: then no sums are kept, as for a tensor without
        such an axis.

        Returns:
            Whether ``channel_axis`` still has channels.
        """
        axis = self.channel_axis
        if axis is None or not -batch.ndim <= axis < batch.ndim:
            self.channel_axis, self.channel_sums, self.channel_values = None, np.zeros(0), 0
            return False
        sums = _channel_sums(batch, axis % batch.ndim)
        if self.channel_values and sums.shape != self.channel_sums.shape:
            self.channel_axis, self.channel_sums, self.channel_values = None, np.zeros(0), 0
            return False
        self.channel_sums = sums if self.channel_values == 0 else self.channel_sums + sums
        self.channel_values += batch.size // max(sums.size, 1)
        return True

    @property
    def channel_means(self) -> npt.NDArray[np.float64] | None:
        """The mean of each channel, float64, (channels,); None where channels were not summed."""
        return None if self.channel_values == 0 else self.channel_sums / self.channel_values

    def merge(self, other: TensorStatistics) -> None:
        """Adds what another pass saw of the same tensor."""
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.batches += other.batches
        self.values += other.values
        self.infinite += other.infinite
        self.extremes += other.extremes
        self.minimum_sum += other.minimum_sum
        self.maximum_sum += other.maximum_sum
        self.minimum_square_sum += other.minimum_square_sum
        self.maximum_square_sum += other.maximum_square_sum
        self.counts += other.counts
        if self.channel_axis == other.channel_axis and self.channel_values == 0:
            self.channel_sums, self.channel_values = other.channel_sums.copy(), other.channel_values
        elif self.channel_axis == other.channel_axis and self.channel_sums.shape == other.channel_sums.shape:
            self.channel_sums = self.channel_sums + other.channel_sums
            self.channel_values += other.channel_values
        elif other.values:
            self.channel_axis, self.channel_sums, self.channel_values = None, np.zeros(0), 0

    def above(self, low: float) -> TensorStatistics:
        """Returns what this would be had every value below ``low`` been ``low``; channel means are left out."""
        if self.minimum >= low:
            return self
        histogram = self.histogram()
        counts = self.counts.copy()
        keys = np.concatenate(
            [np.flatnonzero(counts[_BINS_PER_SIGN:])[::-1] + _BINS_PER_SIGN, np.flatnonzero(counts[:_BINS_PER_SIGN])]
        )
        moved = keys[histogram.high <= low]
        target = int(np.float32(low).reshape(1).view(np.uint32)[0] >> np.uint32(_SHIFT))
        total = int(counts[moved].sum())
        counts[moved] = 0
        counts[target] += total
        mean = max(self.minimum_sum / max(self.extremes, 1), low)
        return replace(
            self,
            minimum=low,
            maximum=max(self.maximum, low),
            minimum_sum=mean * self.extremes,
            minimum_square_sum=mean * mean * self.extremes,
            counts=counts,
            channel_axis=None,
            channel_sums=np.zeros(0),
            channel_values=0,
        )

    def histogram(self) -> Histogram:
        """Returns the occupied bins in order of value; the outermost end at the exact extremes."""
        keys = np.flatnonzero(self.counts)
        negative, positive = keys[keys >= _BINS_PER_SIGN][::-1], keys[keys < _BINS_PER_SIGN]
        inner_negative, outer_negative = _edges(negative - _BINS_PER_SIGN)
        inner_positive, outer_positive = _edges(positive)
        low = np.concatenate([-outer_negative, inner_positive])
        high = np.concatenate([-inner_negative, outer_positive])
        counts = self.counts[np.concatenate([negative, positive])]
        low, high = np.clip(low, self.minimum, self.maximum), np.clip(high, self.minimum, self.maximum)
        return Histogram(low, high, counts)


def _channel_sums(batch: npt.NDArray[np.floating[Any]], axis: int) -> npt.NDArray[np.float64]:
    """Returns the sum of each channel along ``axis``, float64, (channels,).

    Of long runs, such as the pixels of an image's channel, some hundred values stand for all. Runs are summed in
    float32 by einsum, which is several times faster than numpy's own sum and, unlike a matrix product, starts no
    threads beside those of the runtime; then they are summed in float64.
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
