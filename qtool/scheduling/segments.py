"""Cuts an order of tasks where nothing can move past."""

from __future__ import annotations

from qtool.scheduling.tasks import Tasks


def segments(tasks: Tasks) -> tuple[range, ...]:
    """Returns the stretches of tasks between those that all others must come before or after.

    In every order that is possible, a stretch comes as a whole before the next one, so each can be ordered by itself.
    A task ends a stretch if all tasks so far lead to it (each but itself has one among them that waits for it) and all
    tasks from there on depend on it. Both are counted in linear time.
    """
    count = len(tasks.tasks)
    # So many tasks of the first ones have nobody among them that waits for them, and so many of the last ones wait for
    # nobody among those.
    ends, starts = [0] * (count + 1), [0] * (count + 1)
    for number in range(count):
        ends[number] += 1
        ends[min(tasks.after[number], default=count)] -= 1
        starts[max(tasks.before[number], default=-1) + 1] += 1
        starts[number + 1] -= 1
    found, first, open_ends, open_starts = [], 0, 0, 0
    for number in range(count):
        open_ends += ends[number]
        open_starts += starts[number]
        if open_ends == 1 and open_starts == 1:
            found.append(range(first, number + 1))
            first = number + 1
    if first < count:
        found.append(range(first, count))
    return tuple(found)
