"""Finds the parts of an output that differ in magnitude, so that large values do not hide errors in small ones.

A detector's output may hold boxes in pixels beside scores from 0 to 1. One figure over all of it would be that of the
boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array

# Neighbouring channels whose magnitudes differ by this factor belong to different parts.
_UNLIKE = 16.0
# For columns of a matrix, which have only one number per sample.
_UNLIKE_COLUMNS = 64.0
# A tensor that divides into more is not a concatenation.
_MOST_PARTS = 4
# Parts of no larger values are ignored.
_SILENCE = 1e-2
# Values that never come to more are shares or probabilities, of which small ones are small and no other kind of value.
_LARGEST_SHARE = 2.0
_MOST_CHANNELS = 1 << 16
# Of an output with two axes, more columns are classes or features.
_MOST_COLUMNS = 16
_CHUNK_VALUES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPart:
    """A range of an output's channels.

    Attributes:
        axis: the axis of the channels.
        first: the first of them.
        last: the last of them.
        signal: sum of the squares of the reference's values.
        noise: sum of the squares of the differences.
    """

    axis: int
    first: int
    last: int
    signal: float
    noise: float

    @property
    def description(self) -> str:
        """The part in words, such as ``4 to 83 of axis 1``."""
        place = str(self.first) if self.first == self.last else f"{self.first} to {self.last}"
        return f"{place} of axis {self.axis}"


class PartsMeter:
    """Adds up signal and noise by channel, along every axis that may hold parts."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._axes: dict[int, _Channels] | None = None
        self._rank = 0

    def add(self, expected: Array, got: Array) -> None:
        """Adds one batch of float arrays of one shape, a few values at a time."""
        if not expected.size:
            return
        axes = _axes(expected.shape)
        self._rank = expected.ndim
        if self._axes is None:
            self._axes = {axis: _Channels(expected.shape[axis]) for axis in axes}
        self._axes = {axis: seen for axis, seen in self._axes.items() if axis in axes}
        self._axes = {axis: seen for axis, seen in self._axes.items() if seen.count == expected.shape[axis]}
        if not self._axes:
            return
        for a, b, columns in _chunks(expected, got):
            finite = np.isfinite(a) & np.isfinite(b)
            if not finite.all():
                a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
            magnitude, noise = np.abs(a), np.square(a - b)
            for axis, seen in self._axes.items():
                seen.add(magnitude, noise, axis, columns if axis == expected.ndim - 1 else slice(None))

    def parts(self) -> tuple[OutputPart, ...]:
        """Returns the parts of different magnitude, along the first axis that has them; none where there are none."""
        for axis, seen in (self._axes or {}).items():
            found = tuple(seen.parts(axis, _UNLIKE_COLUMNS if self._rank == 2 else _UNLIKE))
            if found:
                return found
        return ()


class _Channels:
    """The sums of the channels along one axis."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._signal, self._noise, self._peak = np.zeros(count), np.zeros(count), np.zeros(count)

    def add(self, magnitude: npt.NDArray[np.float64], noise: npt.NDArray[np.float64], axis: int, place: slice) -> None:
        """Adds values whose channels along ``axis`` are those at ``place``."""
        others = tuple(other for other in range(magnitude.ndim) if other != axis)
        self._signal[place] += np.square(magnitude).sum(axis=others)
        self._noise[place] += noise.sum(axis=others)
        self._peak[place] = np.maximum(self._peak[place], magnitude.max(axis=others, initial=0.0))

    def parts(self, axis: int, unlike: float) -> Iterator[OutputPart]:
        strong = np.flatnonzero(self._signal)
        if not strong.size or self._peak.max() <= _LARGEST_SHARE:
            return
        size = np.sqrt(self._signal[strong])
        ratio = size[1:] / size[:-1]
        borders = strong[1:][(ratio > unlike) | (ratio < 1.0 / unlike)]
        if not 1 <= borders.size < _MOST_PARTS:
            return
        for first, end in zip([0, *borders], [*borders, self.count], strict=True):
            if self._peak[first:end].max() >= _SILENCE:
                yield OutputPart(
                    axis=axis,
                    first=int(first),
                    last=int(end) - 1,
                    signal=float(self._signal[first:end].sum()),
                    noise=float(self._noise[first:end].sum()),
                )


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes along which parts may lie: channels first or last, whichever are fewer."""
    rank = len(shape)
    if rank < 2:
        return ()
    if rank == 2:
        axes: tuple[int, ...] = (1,) if shape[1] <= _MOST_COLUMNS else ()
    elif rank == 3:
        axes = (1, 2) if shape[1] < shape[2] else (2, 1)
    else:
        axes = (1,) if shape[1] <= shape[-1] else (rank - 1,)
    return tuple(axis for axis in axes if 1 < shape[axis] <= _MOST_CHANNELS)


def _chunks(expected: Array, got: Array) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], slice]]:
    """Yields both arrays in float64, some samples and some of the last axis at a time, and which of that axis."""
    step = max(_CHUNK_VALUES // max(expected[0].size, 1), 1)
    length = max(expected.shape[-1], 1)
    width = max(_CHUNK_VALUES * length // max(expected[0].size, 1), 1)
    for first in range(0, len(expected), step):
        for column in range(0, length, width):
            columns = slice(column, min(column + width, length))
            chunk = (slice(first, first + step), ..., columns)
            yield expected[chunk].astype(np.float64), got[chunk].astype(np.float64), columns
