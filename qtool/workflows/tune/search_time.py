"""Limits the search time in proportion to the float model's run time over the data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

# A whole quantization takes at most ten times the float model's time over all samples, plus a minute. The rest is for
# the steps before and after the search.
_TIMES_PLAIN = 8.0
_FIXED_S = 45.0


class SearchTime:
    """Counts from its construction; without ``limit``, time is never up."""

    def __init__(self, clocks: Sequence[Callable[[], float]] = (time.monotonic, time.process_time)) -> None:
        """Starts with ``clocks``, which return seconds; the slowest one counts.

        Under load from other processes that is the processor time, so that their load does not shorten the search.
        """
        self._clocks = [(clock, clock()) for clock in clocks]
        self._end = math.inf
        self._ended = False

    def limit(self, plain_s: float) -> None:
        """Sets the end for a float model that takes ``plain_s`` seconds for all samples."""
        self._end = _TIMES_PLAIN * plain_s + _FIXED_S

    def is_over(self) -> bool:
        """Returns whether the search has to end with the best so far."""
        over = self._spent() >= self._end
        self._ended = self._ended or over
        return over

    @property
    def left_s(self) -> float:
        """Remaining seconds; infinite where there is no limit."""
        return max(self._end - self._spent(), 0.0)

    @property
    def stopped(self) -> str | None:
        """Why the search ended early, in words; None where it did not."""
        if not self._ended:
            return None
        return f"the search was ended after {self._end:.0f} s"

    def _spent(self) -> float:
        return min(clock() - start for clock, start in self._clocks)
