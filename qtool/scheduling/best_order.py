"""Finds the order of tasks that needs the least memory."""

from __future__ import annotations

from qtool.scheduling.greedy import greedy_order
from qtool.scheduling.search import SegmentSearch
from qtool.scheduling.segments import segments
from qtool.scheduling.tasks import Tasks, bytes_while, peak_bytes

# About so many sets of tasks are followed in one stretch, and in all; stretches that are too long for that, and those
# that come too late, are ordered greedily.
_MOST_SETS, _MOST_SETS_IN_ALL = 6_000, 20_000
_LONGEST_SEARCHED = 3_000


def best_order(tasks: Tasks) -> tuple[int, ...]:
    """Returns the order with the lowest peak of memory that was found; the one that is there unless one is lower.

    Stretches between which nothing can move are ordered one by one, those with the highest peaks first, until one is
    reached whose peak is below what another needs in any case.
    """
    order = list(range(len(tasks.tasks)))
    used = bytes_while(tasks, order)
    parts = segments(tasks)
    peaks = {part: int(used[part.start : part.stop].max()) for part in parts}
    reached, sets_left = 0, _MOST_SETS_IN_ALL
    for part in sorted(parts, key=lambda part: (-peaks[part], part.start)):
        if peaks[part] <= reached:
            break
        first = tasks.tasks[part.start]
        alive = int(used[part.start]) - tasks.made_bytes[part.start] - first.extra_bytes
        best, peak = tuple(part), peaks[part]
        if len(part) > 1:
            greedy = greedy_order(tasks, part)
            greedy_peak = peak_bytes(tasks, greedy, alive)
            if greedy_peak < peak:
                best, peak = greedy, greedy_peak
            if len(part) <= min(_LONGEST_SEARCHED, sets_left):
                search = SegmentSearch(tasks, part)
                found = search.best(alive, reached, peak, min(_MOST_SETS, sets_left))
                sets_left -= search.followed
                if found is not None:
                    best, peak = found, peak_bytes(tasks, found, alive)
        order[part.start : part.stop] = best
        reached = max(reached, peak)
    return tuple(order) if peak_bytes(tasks, order) < int(used.max(initial=0)) else tuple(range(len(order)))
