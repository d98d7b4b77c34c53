"""Does tasks in the processes of a Ray cluster, on this machine or on several."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from qtool.cluster.kept_results import NOTHING_KEPT, KeptResults
from qtool.cluster.work import Task, Work, Workers
from qtool.errors import InputError, UsageError
from qtool.reporting.surroundings import versions

if TYPE_CHECKING:
    import ray

INSTALL = "install the extra: pip install 'qtool-onnx[distributed]'"
LOCAL = "local"
# Something else than bad luck ends a worker that often.
_MOST_DEATHS = 5
# Each worker finds the next task waiting when it is done with one.
_TASKS_PER_WORKER = 2
_LONGEST_REASON = 200
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_LONGEST_CONNECT_SECONDS = 10.0


@contextmanager
def ray_workers(place: str, *, threads: int = 0) -> Iterator[Workers]:
    """Yields the workers of a cluster.

    Args:
        place: ``local`` or ``local:N`` for N processes of this machine, by default one a core; or ``HOST:PORT`` of the
            head of a cluster that runs, of which this machine is a part.
        threads: threads of each task; 0 for its share of this machine, and for one in a cluster that runs.

    Raises:
        UsageError: Ray is not installed, or ``place`` makes no sense.
        InputError: the cluster cannot be reached, or does not start.
    """
    # Nothing is reported to anyone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed here, which --cluster needs", fix=INSTALL) from error
    count = local_count(place)
    if count is None:
        _check_address(place)
    # Ray prints what happens to machines and workers; standard output is for results alone.
    with redirect_stdout(sys.stderr):
        _start(place, count)
        try:
            if count is None:
                cpus = max(threads, 1)
                available = int(ray.cluster_resources().get("CPU", 1))
                yield RayWorkers(count=max(available // cpus, 1), threads=cpus, cpus=cpus)
            else:
                yield RayWorkers(count=count, threads=threads or max((os.cpu_count() or 1) // count, 1), cpus=1)
        finally:
            ray.shutdown()


def _check_address(place: str) -> None:
    """Finds in seconds what Ray would try for minutes."""
    host, _, port = place.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or "/" in host:
        raise UsageError(f"--cluster {place} is no place", fix="write local, local:N, or HOST:PORT of a cluster's head")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_LONGEST_CONNECT_SECONDS):
            pass
    except (OSError, OverflowError) as error:
        raise InputError(
            f"nothing answers at {place}: {error}", fix="see `ray status` for the address, or use --cluster local"
        ) from error


def _start(place: str, count: int | None) -> None:
    import ray

    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"env_vars": _numpy_threads()},
    }
    try:
        if count is None:
            ray.init(address=place, **quiet)
        else:
            ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises what its parts raise, bare exceptions included
        raise InputError(
            f"the cluster {place} does not answer: {' '.join(str(error).split())[:_LONGEST_REASON]}",
            fix="check the address and that `ray status` shows it, or use --cluster local",
        ) from error


def _numpy_threads() -> dict[str, str]:
    """Returns the variables with which numpy takes as many threads in workers as here, where Ray would give it one.

    The last bits of its matrix products depend on them, and so may what GPTQ makes of a weight.
    """
    given = {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {_THREAD_VARIABLES[0]: str(cores), **given}


def local_count(place: str) -> int | None:
    """Returns how many processes of this machine ``place`` asks for; None where it is an address.

    Raises:
        UsageError: it is no number, or less than one.
    """
    name, colon, text = place.partition(":")
    if name != LOCAL:
        return None
    if not colon:
        return os.cpu_count() or 1
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UsageError(f"--cluster {place} has no number of workers", fix="write how many, such as local:4")
    return int(text)


@dataclass(slots=True, kw_only=True)
class RayWorkers:
    """Does tasks as Ray's, while ``ray_workers`` holds the cluster.

    Attributes:
        count: how many run at a time, as far as is known; machines may come and go.
        threads: threads of each.
        cpus: processors that Ray is to reserve for each.
        busy_s: processor seconds that their tasks have taken, divided by ``count``.
    """

    count: int
    threads: int
    cpus: int
    busy_s: float = 0.0

    def map(self, work: Work[Task], tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
        """Yields the number of every task and its result, as they come.

        Tasks of a worker that dies are done again by another.

        Raises:
            QtoolError: a task fails, or its workers die again and again.
        """
        import ray

        shared: _Shared | None = None
        run = ray.remote(_run).options(num_cpus=self.cpus, max_retries=_MOST_DEATHS)
        running: dict[ray.ObjectRef[_Done], int] = {}
        try:
            for number, task in enumerate(tasks):
                if shared is None:
                    # The object goes once to every machine, where all of its workers read the same memory.
                    shared = _Shared(ray.put(work), _own_versions())
                if len(running) >= self.count * _TASKS_PER_WORKER:
                    yield self._next_of(running)
                running[run.remote(shared, task)] = number
            while running:
                yield self._next_of(running)
        finally:
            for left in running:
                ray.cancel(left, force=True)

    def kept(self, key: Callable[[], str]) -> KeptResults:
        """Keeps nothing; see ``KeepingWorkers``."""
        return NOTHING_KEPT

    def _next_of(self, running: dict[ray.ObjectRef[_Done], int]) -> tuple[int, bytes]:
        """Waits for one task, and takes it out of ``running``."""
        import ray

        (ready,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(ready)
        try:
            done = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise InputError(
                f"task {number + 1} could not be done: {type(error).__name__}, after {_MOST_DEATHS + 1} workers",
                fix="see whether its workers have enough memory, with fewer of them or a smaller --batch-size",
            ) from error
        self.busy_s += done.seconds / self.count
        return number, done.result


@dataclass(frozen=True, slots=True)
class _Shared:
    work: ray.ObjectRef[Any]
    versions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Done:
    result: bytes
    seconds: float


def _run(shared: _Shared, task: Any) -> _Done:
    start, own = time.process_time(), _own_versions()
    if shared.versions != own:
        others = ", ".join(f"{name} {number}" for name, number in own)
        here = ", ".join(f"{name} {number}" for name, number in shared.versions)
        raise InputError(
            f"the worker on {platform.node()} has {others}, and the run {here}",
            fix="install the same versions on all machines of the cluster",
        )
    result = _opened(shared).run(task)
    return _Done(result, time.process_time() - start)


@dataclass(frozen=True, slots=True)
class _Opened:
    run: Callable[[Any], bytes]
    stack: ExitStack


@lru_cache(maxsize=1)
def _opened(shared: _Shared) -> _Opened:
    """Opens the work once in a worker, which stays open until the worker gets other work or ends."""
    import ray

    stack = ExitStack()
    work: Work[Any] = ray.get(shared.work)
    return _Opened(stack.enter_context(work.opened()), stack)


@cache
def _own_versions() -> tuple[tuple[str, str], ...]:
    found = versions()
    return tuple((name, found[name]) for name in ("qtool", "onnxruntime", "numpy"))
