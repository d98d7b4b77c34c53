"""Work that is divided into tasks which do not depend on each other, and who does it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from qtool.cluster.kept_results import NOTHING_KEPT, KeptResults

Task = TypeVar("Task")
TaskOfWork = TypeVar("TaskOfWork", contravariant=True)


class Work(Protocol[TaskOfWork]):
    """What all tasks share, such as a model. For a cluster it can be pickled; it travels once to every machine."""

    def opened(self) -> AbstractContextManager[Callable[[TaskOfWork], bytes]]:
        """Opens what all tasks need, once for each process, and yields what does one of them.

        The result of a task, as bytes, depends on nothing but the work and the task.
        """
        ...


class Workers(Protocol):
    """Does tasks.

    Attributes:
        count: how many tasks run at a time.
        threads: threads that each of them should take; None where it may choose.
        busy_s: processor seconds that tasks have taken outside of this process, divided by ``count``.
    """

    @property
    def count(self) -> int:
        """How many tasks run at a time."""
        ...

    @property
    def threads(self) -> int | None:
        """Threads that each task should take; None where it may choose."""
        ...

    @property
    def busy_s(self) -> float:
        """Processor seconds that tasks have taken outside of this process, divided by ``count``."""
        ...

    def map(self, work: Work[Task], tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
        """Yields the number of every task and its result, as they come; takes tasks as it gets to them.

        Raises:
            QtoolError: a task fails, or its workers die again and again.
        """
        ...

    def kept(self, key: Callable[[], str]) -> KeptResults:
        """Returns the place for results of the work that ``key`` returns the name of, which no other work has."""
        ...


class InThisProcess:
    """Does one task after the other, here."""

    count = 1
    threads = None
    busy_s = 0.0

    def __reduce__(self) -> str:
        """Pickles its name, so that it is the same in every process."""
        return "IN_THIS_PROCESS"

    def map(self, work: Work[Task], tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
        """Yields the results in order."""
        with work.opened() as run:
            for number, task in enumerate(tasks):
                yield number, run(task)

    def kept(self, key: Callable[[], str]) -> KeptResults:
        """Keeps nothing: what is done here is not worth the time that names and files take."""
        return NOTHING_KEPT


@dataclass(frozen=True, slots=True)
class KeepingWorkers:
    """Workers whose results are kept, and what finds the place for those of a kind of work by its name."""

    workers: Workers
    place: Callable[[str], KeptResults]

    @property
    def count(self) -> int:
        """How many tasks run at a time."""
        return self.workers.count

    @property
    def threads(self) -> int | None:
        """Threads that each task should take; None where it may choose."""
        return self.workers.threads

    @property
    def busy_s(self) -> float:
        """Processor seconds that tasks have taken outside of this process, divided by ``count``."""
        return self.workers.busy_s

    def map(self, work: Work[Task], tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
        """Has the tasks done by the workers."""
        return self.workers.map(work, tasks)

    def kept(self, key: Callable[[], str]) -> KeptResults:
        """Returns the place for the results of one kind of work."""
        return self.place(key())


IN_THIS_PROCESS: Workers = InThisProcess()


def threads_of(workers: Workers, threads: int) -> int:
    """Returns the threads that a task takes: those that its workers have, or else ``threads``."""
    return threads if workers.threads is None else workers.threads


def results(
    workers: Workers,
    work: Work[Task],
    tasks: Iterable[tuple[str, Task]],
    *,
    kept: KeptResults = NOTHING_KEPT,
    accepts: Callable[[bytes], bool] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yields the key of every task and its result, as they come.

    Args:
        workers: who does them.
        work: what all tasks share.
        tasks: each with a key of its own, which tells it from the tasks of an earlier run.
        kept: results of an earlier run, which are not made again, and the place for those of this one.
        accepts: whether a kept result, which may be damaged, can be used; None for all.

    Raises:
        QtoolError: a task fails, or its workers die again and again.
        OutputError: a result cannot be kept.
    """
    found: deque[tuple[str, bytes]] = deque()
    keys: list[str] = []

    def left() -> Iterator[Task]:
        for key, task in tasks:
            result = kept.read(key)
            if result is not None and (accepts is None or accepts(result)):
                found.append((key, result))
                continue
            keys.append(key)
            yield task

    for number, result in workers.map(work, left()):
        while found:
            yield found.popleft()
        kept.write(keys[number], result)
        yield keys[number], result
    yield from found
