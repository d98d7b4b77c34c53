"""Keeps a few batches of the calibration data aside to judge the result by.

Every so many-th batch is kept, not the last ones: data often comes sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from qtool.calib.specs import Feed

# At most a tenth of the data is kept aside, and no more than about this many batches.
_LEAST_DISTANCE = 10
_MOST_BATCHES = 8


@dataclass(frozen=True, slots=True)
class HoldoutSplit:
    """Splits the same stream of batches always in the same way.

    Attributes:
        every: each batch whose number, from 1, is a multiple of this is kept aside; 0 for none.
    """

    every: int = 0

    @staticmethod
    def of(batches: int | None) -> HoldoutSplit:
        """Chooses for so many batches, or for an unknown number."""
        if batches is None:
            return HoldoutSplit(_LEAST_DISTANCE)
        if batches < _LEAST_DISTANCE:
            return HoldoutSplit()
        return HoldoutSplit(max(_LEAST_DISTANCE, -(-batches // _MOST_BATCHES)))

    def used(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        """Yields the batches that shape the result."""
        return (feed for number, feed in enumerate(feeds, start=1) if not self._is_aside(number))

    def numbers(self) -> Iterator[int]:
        """Yields the numbers, from 0, of the batches that shape the result; there is no end to them."""
        return (number - 1 for number in count(1) if not self._is_aside(number))

    def aside(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        """Yields the batches that judge it, no more than a handful."""
        given = 0
        for number, feed in enumerate(feeds, start=1):
            if self._is_aside(number):
                yield feed
                given += 1
                if given == _MOST_BATCHES:
                    return

    def _is_aside(self, number: int) -> bool:
        return self.every > 0 and number % self.every == 0
