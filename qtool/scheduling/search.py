"""Orders a segment of tasks for the lowest peak memory.

What is in memory depends only on which tasks are done, not on their order. So among the orders that lead to the same
set of done tasks only the one with the lowest peak matters: the search goes from set to set, one task at a time, as in
"Ordering Chaos: Memory-Aware Scheduling of Irregularly Wired Neural Networks for Edge Devices" (Ahn et al., 2020).
Where there are too many sets, only those with the lowest peaks are followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtool.scheduling.tasks import Tasks

# So many sets of the same number of tasks are followed at least.
_FEWEST_SETS = 4
# From so many tasks on, only some of those that could be next are tried.
_LARGEST_COMPLETE, _MOST_TRIED = 24, 8


@dataclass(frozen=True, slots=True)
class _Done:
    """A set of tasks that are done, with the best way to it.

    Attributes:
        mask: the set, one bit per task of the stretch.
        peak: the most that was in memory on the way.
        alive: what is in memory now.
        ready: tasks that can be next, by their places in the stretch.
        last: what was done since ``before``.
        before: the set that it comes from.
    """

    mask: int
    peak: int
    alive: int
    ready: tuple[int, ...]
    last: tuple[int, ...]
    before: _Done | None


class SegmentSearch:
    """Searches the best order of one segment.

    Attributes:
        followed: how many sets of tasks were followed so far.
    """

    def __init__(self, tasks: Tasks, segment: Sequence[int]) -> None:
        """Takes the tasks of ``segment``, which come one after the other in every order."""
        places = {number: place for place, number in enumerate(segment)}
        self.followed = 0
        self._segment = tuple(segment)
        self._made = [tasks.made_bytes[number] for number in segment]
        self._extra = [tasks.tasks[number].extra_bytes for number in segment]
        self._after = [[places[other] for other in tasks.after[number] if other in places] for number in segment]
        self._before = [
            sum(1 << places[other] for other in tasks.before[number] if other in places) for number in segment
        ]
        # Of each task, the tensors that may go when it is done: the bits of all that read them, and their sizes.
        self._freed: list[list[tuple[int, int]]] = []
        masks: dict[int, int | None] = {}
        for number in segment:
            task = tasks.tasks[number]
            for tensor in (*task.reads, *task.makes):
                if tensor not in masks:
                    masks[tensor] = _readers_mask(tasks, tensor, places, segment[-1])
            self._freed.append(
                [
                    (mask, tasks.nbytes[tensor])
                    for tensor in (*task.reads, *task.makes)
                    if (mask := masks[tensor]) is not None and tasks.nbytes[tensor]
                ]
            )

    def best(self, alive: int, enough: int, limit: int, most_sets: int) -> tuple[int, ...] | None:
        """Returns the order with the lowest peak that was found, if that is below ``limit``.

        Args:
            alive: what is in memory when the stretch begins.
            enough: a peak that need not be undercut.
            limit: the peak that is reached already.
            most_sets: about how many sets of tasks to follow at most.
        """
        count = len(self._segment)
        width = max(most_sets // max(count, 1), _FEWEST_SETS)
        ready = tuple(place for place in range(count) if not self._before[place])
        start = self._closed(_Done(0, max(alive, enough), alive, ready, (), None))
        levels: list[dict[int, _Done]] = [{} for _ in range(count + 1)]
        levels[start.mask.bit_count()][start.mask] = start
        for level in levels[:-1]:
            followed = list(level.values())
            if len(followed) > width:
                followed = sorted(followed, key=lambda done: (done.peak, done.alive))[:width]
            self.followed += len(followed)
            for done in followed:
                for place in self._tried(done):
                    following = self._closed(self._with(done, place))
                    if following.peak >= limit:
                        continue
                    same = levels[following.mask.bit_count()]
                    known = same.get(following.mask)
                    if known is None or following.peak < known.peak:
                        same[following.mask] = following
            level.clear()
        ends = list(levels[-1].values())
        return self._order(ends[0]) if ends and ends[0].peak < limit else None

    def _tried(self, done: _Done) -> Sequence[int]:
        if len(self._segment) <= _LARGEST_COMPLETE or len(done.ready) <= _MOST_TRIED:
            return done.ready
        added = {place: self._made[place] - self._freed_by(done, place) for place in done.ready}
        return sorted(done.ready, key=lambda place: (added[place], place))[:_MOST_TRIED]

    def _closed(self, done: _Done) -> _Done:
        """Does whatever takes no more memory than it frees and raises no peak: waiting with it cannot help."""
        moved = True
        while moved:
            moved = False
            for place in done.ready:
                raises = done.alive + self._made[place] + self._extra[place] > done.peak
                if not raises and self._made[place] <= self._freed_by(done, place):
                    following = self._with(done, place)
                    done = _Done(
                        following.mask,
                        following.peak,
                        following.alive,
                        following.ready,
                        (*done.last, place),
                        done.before,
                    )
                    moved = True
                    break
        return done

    def _freed_by(self, done: _Done, place: int) -> int:
        mask = done.mask | 1 << place
        return sum(nbytes for readers, nbytes in self._freed[place] if not readers & ~mask)

    def _with(self, done: _Done, place: int) -> _Done:
        mask = done.mask | 1 << place
        held = done.alive + self._made[place]
        ready = [other for other in done.ready if other != place]
        ready += [other for other in self._after[place] if not self._before[other] & ~mask]
        return _Done(
            mask,
            max(done.peak, held + self._extra[place]),
            held - self._freed_by(done, place),
            tuple(sorted(ready)),
            (place,),
            done,
        )

    def _order(self, end: _Done) -> tuple[int, ...]:
        parts: list[tuple[int, ...]] = []
        done: _Done | None = end
        while done is not None:
            parts.append(done.last)
            done = done.before
        return tuple(self._segment[place] for part in reversed(parts) for place in part)


def _readers_mask(tasks: Tasks, tensor: int, places: dict[int, int], last: int) -> int | None:
    """Returns the bits of the tasks that read a tensor; None where it is needed after the stretch."""
    readers = tasks.readers[tensor]
    if tensor in tasks.kept or (readers and readers[-1] > last):
        return None
    return sum(1 << places[reader] for reader in readers if reader in places)
