"""Counts by bin, in memory for the bins of magnitudes that occur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Memory is taken for so many neighbouring bins at a time.
_ROW_BITS = 8
_ROW = 1 << _ROW_BITS


@dataclass(frozen=True, slots=True)
class Occupied:
    """Bins that are not empty.

    Attributes:
        bins: int64, (occupied,): their numbers, in order.
        counts: int64, (occupied,): what each of them counted.
    """

    bins: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


class BinCounts:
    """Counts in bins 0 to ``size`` - 1, of which few stretches are in use."""

    def __init__(self, size: int) -> None:
        """Begins with ``size`` empty bins, a multiple of 256."""
        self.size = size
        # What takes a bin of a stretch to its place in the rows; so low that the place is negative where it has none.
        self._nowhere = -2 * size
        self._shifts = np.full(size // _ROW, self._nowhere, np.int64)
        self._rows = np.zeros(0, np.int64)

    def __getstate__(self) -> tuple[int, Occupied]:
        """Returns what is pickled: the size and the occupied bins."""
        return self.size, self.occupied()

    def __setstate__(self, state: tuple[int, Occupied]) -> None:
        """Takes what ``__getstate__`` returns."""
        size, occupied = state
        BinCounts.__init__(self, size)
        self.put(occupied)

    def __eq__(self, other: object) -> bool:
        """Returns whether all counts are the same."""
        if not isinstance(other, BinCounts):
            return NotImplemented
        return self.size == other.size and np.array_equal(self.dense(), other.dense())

    __hash__ = None  # type: ignore[assignment]

    def count(self, bins: npt.NDArray[np.int64]) -> None:
        """Counts one value for every element of ``bins``, int64, (values,)."""
        places = self._places(bins)
        self._rows += np.bincount(places, minlength=self._rows.size)

    def put(self, occupied: Occupied) -> None:
        """Adds to the counts of bins."""
        places = self._places(occupied.bins)
        self._rows[places] += occupied.counts

    def occupied(self) -> Occupied:
        """Returns the bins that are not empty."""
        stretches = np.flatnonzero(self._shifts != self._nowhere)
        rows = self._rows.reshape(-1, _ROW)[self._shifts[stretches] // _ROW + stretches]
        places, columns = np.nonzero(rows)
        return Occupied(stretches[places] * _ROW + columns, rows[places, columns])

    def dense(self) -> npt.NDArray[np.int64]:
        """Returns the counts of all bins, int64, (size,)."""
        counts, occupied = np.zeros(self.size, np.int64), self.occupied()
        counts[occupied.bins] = occupied.counts
        return counts

    def _places(self, bins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns where bins are counted, after making room for those that have none."""
        stretches = bins >> _ROW_BITS
        places: npt.NDArray[np.int64] = self._shifts.take(stretches)
        places += bins
        if not places.size or places.min() >= 0:
            return places
        fresh = np.unique(stretches[places < 0])
        self._shifts[fresh] = self._rows.size - fresh * _ROW + np.arange(len(fresh)) * _ROW
        self._rows = np.concatenate([self._rows, np.zeros(len(fresh) * _ROW, np.int64)])
        moved: npt.NDArray[np.int64] = self._shifts.take(stretches) + bins
        return moved
