"""Greedy memory scheduling: always the task with the least net memory next."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from qtool.scheduling.tasks import Tasks


def greedy_order(tasks: Tasks, segment: Sequence[int]) -> tuple[int, ...]:
    """Returns an order of the tasks of ``segment`` in n·log n time; ties are broken by the order that is there.

    Tasks outside of the stretch count as done before it or after it, whichever they are.
    """
    inside = set(segment)
    waiting = {number: sum(other in inside for other in tasks.before[number]) for number in segment}
    left = {
        tensor: sum(reader >= segment[0] for reader in tasks.readers[tensor])
        for number in segment
        for tensor in (*tasks.tasks[number].reads, *tasks.tasks[number].makes)
    }
    added = {number: _added(tasks, left, number) for number in segment if waiting[number] == 0}
    heap = [(cost, number) for number, cost in added.items()]
    heapq.heapify(heap)
    order: list[int] = []
    done: set[int] = set()
    while heap:
        cost, number = heapq.heappop(heap)
        # A task is in the heap once for each cost that it has had.
        if number in done or added[number] != cost:
            continue
        done.add(number)
        order.append(number)
        for tensor in tasks.tasks[number].reads:
            left[tensor] -= 1
            if left[tensor] == 1:
                # The last one that reads it would free it.
                last = next(
                    (reader for reader in tasks.readers[tensor] if reader in added and reader not in done), None
                )
                if last is not None:
                    added[last] = _added(tasks, left, last)
                    heapq.heappush(heap, (added[last], last))
        for other in tasks.after[number]:
            if other in waiting:
                waiting[other] -= 1
                if waiting[other] == 0:
                    added[other] = _added(tasks, left, other)
                    heapq.heappush(heap, (added[other], other))
    return tuple(order)


def _added(tasks: Tasks, left: dict[int, int], number: int) -> int:
    """Returns by how many bytes more are in memory after a task than before it."""
    task = tasks.tasks[number]
    freed = sum(tasks.nbytes[tensor] for tensor in task.reads if left[tensor] == 1 and tensor not in tasks.kept)
    gone = sum(tasks.nbytes[tensor] for tensor in task.makes if left[tensor] == 0 and tensor not in tasks.kept)
    return tasks.made_bytes[number] - gone - freed
