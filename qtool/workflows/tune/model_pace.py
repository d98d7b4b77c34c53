"""Notices phases in which the machine is slower, by the time that one model takes.

Other work on a processor, or on the host of a virtual machine, slows some models down more than others. On a virtual
machine with two cores, EfficientNet-Lite0 took 7.8 ms instead of 4.7 for two to eight seconds at a time, quantized 2.8
instead of 2.2: layers that are worth staying float at one moment are not at the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from qtool.metrics.latency import Times

# A model that takes so many times its shortest time is in such a phase.
_SLOWER = 1.2
# How often measurements are repeated in all, and how long after each other: a machine may also stay slow.
_MOST_REPEATS, _PAUSE_SECONDS = 5, 1.0


class ModelPace:
    """The shortest time of one model so far."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Knows no time yet; ``sleep`` waits for so many seconds."""
        self._shortest_s = math.inf
        self._repeats_left = _MOST_REPEATS
        self._sleep = sleep

    def note(self, seconds: float) -> None:
        """Takes the time of one run."""
        self._shortest_s = min(self._shortest_s, seconds)

    def is_slow(self, seconds: float) -> bool:
        """Returns whether a run takes clearly longer than the shortest one."""
        return seconds > _SLOWER * self._shortest_s

    def will_repeat(self, seconds: float) -> bool:
        """Returns whether ``steady`` measures again after a run that takes so long."""
        return self._repeats_left > 0 and self.is_slow(seconds)

    def steady(self, measure: Callable[[], Sequence[Times]]) -> Sequence[Times]:
        """Returns what ``measure`` does: the seconds of each run, the model's own first.

        It is called again some time later while the model takes longer than it did before.
        """
        while True:
            times = measure()
            seconds = float(np.median(times[0]))
            if not self.will_repeat(seconds):
                self.note(seconds)
                return times
            self._repeats_left -= 1
            self._sleep(_PAUSE_SECONDS)
