"""Holds out a few batches of the calibration data to check the result on.

Every so many-th batch is held out, not the last ones, since data is often sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from qtool.calib.specs import Feed

# At most a tenth of the data is held out, and about this many batches.
_LEAST_DISTANCE = 10
_MOST_BATCHES = 8


@dataclass(frozen=True, slots=True)
class HoldoutSplit:
    """Splits a stream of batches deterministically.

    Attributes:
        every: each batch whose number, from 1, is a multiple of this is held out; 0 for none.
    """

    every: int = 0

    @staticmethod
    def of(batches: int | None) -> HoldoutSplit:
        """Returns the split of so many batches, or of an unknown number."""
        if batches is None:
            return HoldoutSplit(_LEAST_DISTANCE)
        if batches < _LEAST_DISTANCE:
            return HoldoutSplit()
        return HoldoutSplit(max(_LEAST_DISTANCE, -(-batches // _MOST_BATCHES)))

    def used(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        """Yields the batches used for calibration."""
        return (feed for number, feed in enumerate(feeds) if not self.holds_out(number))

    def numbers(self) -> Iterator[int]:
        """Yields the numbers, from 0, of the batches used for calibration, without end."""
        return (number for number in count() if not self.holds_out(number))

    def aside(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        """Yields the held-out batches, a few at most."""
        given = 0
        for number, feed in enumerate(feeds):
            if self.holds_out(number):
                yield feed
                given += 1
                if given == _MOST_BATCHES:
                    return

    def holds_out(self, number: int) -> bool:
        """Tells whether the batch of this number, from 0, is held out."""
        return self.every > 0 and (number + 1) % self.every == 0
