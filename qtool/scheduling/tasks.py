"""The scheduling problem without its graph: tasks, their inputs and outputs, and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One node.

    Attributes:
        reads: the tensors that it reads, each once, by number.
        makes: the tensors that it makes.
        extra_bytes: what it holds beside them while it runs.
    """

    reads: tuple[int, ...]
    makes: tuple[int, ...]
    extra_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What has to be done, in an order in which every tensor is made before it is read.

    Attributes:
        tasks: one a node.
        nbytes: the size of every tensor.
        kept: the tensors that have to be there at the end.
    """

    tasks: tuple[Task, ...]
    nbytes: tuple[int, ...]
    kept: frozenset[int]

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """The tasks that read each tensor, in order."""
        readers: list[list[int]] = [[] for _ in self.nbytes]
        for number, task in enumerate(self.tasks):
            for tensor in task.reads:
                readers[tensor].append(number)
        return tuple(map(tuple, readers))

    @cached_property
    def producers(self) -> tuple[int | None, ...]:
        """The task that makes each tensor; None for those that are there from the start."""
        producers: list[int | None] = [None] * len(self.nbytes)
        for number, task in enumerate(self.tasks):
            for tensor in task.makes:
                producers[tensor] = number
        return tuple(producers)

    @cached_property
    def before(self) -> tuple[tuple[int, ...], ...]:
        """The tasks that have to come before each task."""
        producers = self.producers
        return tuple(
            tuple(sorted({producer for tensor in task.reads if (producer := producers[tensor]) is not None}))
            for task in self.tasks
        )

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """The tasks that wait for each task."""
        after: list[list[int]] = [[] for _ in self.tasks]
        for number, before in enumerate(self.before):
            for earlier in before:
                after[earlier].append(number)
        return tuple(map(tuple, after))

    @cached_property
    def start_bytes(self) -> int:
        """What is there before the first task."""
        return sum(
            nbytes
            for nbytes, producer, readers, tensor in zip(
                self.nbytes, self.producers, self.readers, range(len(self.nbytes)), strict=True
            )
            if producer is None and (readers or tensor in self.kept)
        )

    @cached_property
    def made_bytes(self) -> tuple[int, ...]:
        """What each task makes."""
        return tuple(sum(self.nbytes[tensor] for tensor in task.makes) for task in self.tasks)


def bytes_while(tasks: Tasks, order: Sequence[int], alive: int | None = None) -> npt.NDArray[np.int64]:
    """Returns what is in memory while each task of ``order`` runs, int64, (tasks,).

    Args:
        tasks: all that has to be done.
        order: some of it, between tasks with lower numbers, which are done, and tasks with higher ones.
        alive: what is in memory before; None for the start.
    """
    first = min(order, default=0)
    left = {
        tensor: sum(reader >= first for reader in tasks.readers[tensor])
        for number in order
        for tensor in (*tasks.tasks[number].reads, *tasks.tasks[number].makes)
    }
    alive, sums = tasks.start_bytes if alive is None else alive, []
    for number in order:
        task = tasks.tasks[number]
        alive += tasks.made_bytes[number]
        sums.append(alive + task.extra_bytes)
        for tensor in task.reads:
            left[tensor] -= 1
        alive -= sum(
            tasks.nbytes[tensor]
            for tensor in (*task.reads, *task.makes)
            if left[tensor] == 0 and tensor not in tasks.kept
        )
    return np.asarray(sums, np.int64)


def peak_bytes(tasks: Tasks, order: Sequence[int], alive: int | None = None) -> int:
    """Returns the most that is in memory at once, of what ``bytes_while`` returns."""
    return int(bytes_while(tasks, order, alive).max(initial=0))
