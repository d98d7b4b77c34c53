"""Measures how calibration gets faster with more workers, and simulates more of them than this machine has.

Run: python benchmarks/cluster/scaling.py MODEL.onnx DATA.npz [--workers 1,2] [--simulated 4,8,64] [--samples 20000]

Real workers are processes of Ray on this machine, with one thread each; their start is measured apart. The simulation
takes what one task was measured to cost: a worker's time for its batches and its statistics, and this process's for
reading and sending the batches and for joining the statistics. This process does one thing at a time, and keeps two
tasks a worker on the way. What it leaves out: the network, and workers that share memory or caches.
"""

from __future__ import annotations

import argparse
import heapq
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from qtool.backends.this_machine import target_named
from qtool.calib.datasets.data_shard import DataShard
from qtool.calib.statistics_file import statistics_from
from qtool.cluster.kept_results import NOTHING_KEPT, KeptResults
from qtool.cluster.ray_cluster import ray_workers
from qtool.cluster.work import Workers
from qtool.progress import SILENT
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.quantize.calibrate import Watched
from qtool.workflows.quantize.data_request import data_request
from qtool.workflows.quantize.prepared_model import PreparedModel, load_prepared
from qtool.workflows.shards.gather_in_tasks import Batches, gather_in_tasks
from qtool.workflows.shards.merge_statistics import joined

# As gather_in_tasks divides data.
_TASKS, _MOST_BATCHES = 128, 32
_LARGER_TASK = 4


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that parts of a task take, medians."""

    read: float
    run_batch: float
    run_task: float
    join: float
    samples_per_batch: int

    def task(self, samples: int) -> tuple[int, int]:
        """Returns how many tasks so many samples make, and the batches of each."""
        batches = max(samples // self.samples_per_batch, 1)
        each = min(max(batches // _TASKS, 1), _MOST_BATCHES)
        return -(-batches // each), each


@dataclass
class Timed:
    """Workers that note when results came, or in place of workers, what a task costs."""

    workers: Workers | None = None
    came: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    results: list[bytes] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there are."""
        return 1 if self.workers is None else self.workers.count

    @property
    def threads(self) -> int | None:
        """One each."""
        return 1

    @property
    def busy_s(self) -> float:
        """Not asked for."""
        return 0.0

    def kept(self, key: Callable[[], str]) -> KeptResults:
        """Keeps nothing."""
        return NOTHING_KEPT

    def map(self, work: Any, tasks: Iterable[Batches]) -> Iterator[tuple[int, bytes]]:
        """Has the tasks done, and notes when."""
        if self.workers is None:
            yield from self._measured(work, tasks)
            return
        for found in self.workers.map(work, tasks):
            self.came.append(time.perf_counter())
            yield found

    def _measured(self, work: Any, tasks: Iterable[Batches]) -> Iterator[tuple[int, bytes]]:
        held: list[Batches] = []
        with pickled(work).opened() as run:
            stream = iter(tasks)
            while True:
                start = time.perf_counter()
                batches = next(stream, None)
                if batches is None:
                    break
                pickle.dumps(batches, protocol=5)
                self.read.append(time.perf_counter() - start)
                held.append(batches)
            run(held[0])
            for batches in held:
                self.small.append(timed(lambda: run(batches)))  # noqa: B023 - called at once
            for first in range(0, len(held) - _LARGER_TASK + 1, _LARGER_TASK):
                group = held[first : first + _LARGER_TASK]
                large = Batches(
                    feeds=tuple(feed for one in group for feed in one.feeds),
                    numbers=tuple(number for one in group for number in one.numbers),
                    seen=group[0].seen,
                )
                self.large.append(timed(lambda: run(large)))  # noqa: B023 - called at once
            for number, batches in enumerate(held):
                result = run(batches)
                self.results.append(result)
                yield number, result


def pickled(work: Any) -> Any:
    return pickle.loads(pickle.dumps(work, protocol=5))


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def calibrate(prepared: PreparedModel, workers: Any) -> None:
    samples = prepared.samples
    shard = DataShard(samples.dataset)
    gather_in_tasks(
        workers, prepared.model, Watched.by(prepared.plan), samples.dataset, samples.data, SILENT, shard=shard
    )


def costs_of(prepared: PreparedModel) -> Costs:
    """Runs every task in this process, and returns what its parts take."""
    probe = Timed()
    calibrate(prepared, probe)
    found = [statistics_from(result, "a result") for result in probe.results]
    join = []
    total = found[0]
    for result in probe.results[1:]:
        start = time.perf_counter()
        total = joined(total, statistics_from(result, "a result"))
        join.append(time.perf_counter() - start)
    run_batch = (median(probe.large) - median(probe.small)) / (_LARGER_TASK - 1)
    return Costs(
        read=median(probe.read),
        run_batch=run_batch,
        run_task=max(median(probe.small) - run_batch, 0.0),
        join=median(join),
        samples_per_batch=found[0].collected.samples,
    )


def simulated(costs: Costs, workers: int, samples: int) -> tuple[float, float]:
    """Returns samples a second, and the share of the time that this process is busy."""
    tasks, batches = costs.task(samples)
    submit, run = costs.read * batches, costs.run_task + costs.run_batch * batches
    free, running = [0.0] * workers, list[float]()
    clock = busy = 0.0
    left = tasks
    while left or running:
        if left and len(running) < 2 * workers:
            clock, busy, left = clock + submit, busy + submit, left - 1
            end = max(clock, heapq.heappop(free)) + run
            heapq.heappush(free, end)
            heapq.heappush(running, end)
        else:
            clock = max(clock, heapq.heappop(running)) + costs.join
            busy += costs.join
    return tasks * batches * costs.samples_per_batch / clock, busy / clock


@contextmanager
def started(count: int) -> Iterator[tuple[Workers, float]]:
    start = time.perf_counter()
    with ray_workers(f"local:{count}", threads=1) as workers:
        yield workers, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--workers", default="1,2", help="how many real ones, such as 1,2")
    parser.add_argument("--simulated", default="1,2,4,8,16,32,64", help="how many simulated ones")
    parser.add_argument("--samples", type=int, default=20_000, help="samples of the simulated calibration")
    options = parser.parse_args()
    request = data_request([options.data], preprocess=None, batch_size=None, limit=None)
    scheme = target_named(None).scheme
    prepared = load_prepared(ModelSource(path=options.model), request, scheme, NodeSelection(), SILENT)

    costs = costs_of(prepared)
    print(f"One batch of {costs.samples_per_batch}: {costs.run_batch * 1e3:.1f} ms in a worker, of one thread; reading")
    print(f"and sending it {costs.read * 1e3:.1f} ms. A task: {costs.run_task * 1e3:.1f} ms more in the worker, and")
    print(f"{costs.join * 1e3:.1f} ms to join its statistics.\n")
    rows = []
    for count in map(int, options.workers.split(",")):
        with started(count) as (workers, seconds):
            timing = Timed(workers)
            begin = time.perf_counter()
            calibrate(prepared, timing)
            samples = (len(timing.came) - count) * costs.samples_per_batch
            speed = samples / (timing.came[-1] - timing.came[count - 1])
            rows.append(f"| {count} | {seconds:.1f} | {timing.came[0] - begin:.1f} | {speed:.1f} |")
    print("| workers | start, s | until the first result, s | samples/s from then on |\n|---:|---:|---:|---:|")
    print(*rows, sep="\n")
    tasks, batches = costs.task(options.samples)
    print(f"\nSimulated, {options.samples} samples in {tasks} tasks of {batches} batches:\n")
    print("| workers | samples/s | of one worker's | the reading process is busy |\n|---:|---:|---:|---:|")
    alone, _ = simulated(costs, 1, options.samples)
    for count in map(int, options.simulated.split(",")):
        speed, busy = simulated(costs, count, options.samples)
        print(f"| {count} | {speed:.0f} | {speed / alone:.1f} x | {busy:.0%} |")


if __name__ == "__main__":
    main()
