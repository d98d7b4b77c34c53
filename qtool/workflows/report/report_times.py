"""Measures latency, throughput, cold start and memory of a report's models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtool.backends.runtimes import DEFAULT_RUNTIME, runtime_named
from qtool.calib.datasets.base import Dataset
from qtool.calib.specs import Feed, samples_in
from qtool.errors import UsageError
from qtool.metrics.cold_start import STARTS, cold_starts
from qtool.metrics.latency import Interval, Times, interleaved_times, paired_ratio, run_milliseconds
from qtool.metrics.memory import Memory, measure_memory
from qtool.metrics.session_group import JudgedModel, SessionGroup, open_group
from qtool.metrics.size_by_kind import ModelSize
from qtool.progress import Progress
from qtool.reporting.model import GridPoint
from qtool.runtime.available_memory import available_bytes
from qtool.runtime.profile import OperatorTime
from qtool.workflows.report.report_outputs import Seen

# Batches take long and vary little, so that fewer rounds are enough.
_MOST_BATCH_ROUNDS = 10
# onnxruntime copies weights into the order of its kernels while it still has them as they are in the file.
_MEMORY_OF_A_BYTE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingOptions:
    """The options of time measurements.

    Attributes:
        threads: threads inside an operator; 0 is one per core.
        rounds: rounds of the latency measurement; throughput takes 10 of them at most.
        latency: whether to measure it.
        memory: whether to measure its peak in fresh processes.
        cold_start: whether to measure the time to the first result in fresh processes.
        profile: whether to profile operators.
        batch_sizes: further batch sizes to time; without any, 1 where there are numbers of threads.
        thread_counts: further numbers of threads to time; without any, ``threads`` where there are sizes.
    """

    threads: int = 0
    rounds: int = 25
    latency: bool = True
    memory: bool = True
    cold_start: bool = False
    profile: bool = False
    batch_sizes: tuple[int, ...] = ()
    thread_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """The measurements, one entry per model, the float model's first; ``grid`` has none of the float model.

    Attributes:
        sample: seconds of a run on one sample; empty where the latency was not requested.
        batch: seconds of a run on a batch; empty where the latency was not requested.
        memory: peaks.
        cold_start: milliseconds to the first result; None where it was not requested.
        operators: times by operator; empty where they were not requested.
        grid: the times in every other setting; empty where none was requested.
    """

    sample: tuple[Times, ...]
    batch: tuple[Times, ...]
    memory: tuple[Memory, ...]
    cold_start: tuple[Interval | None, ...]
    operators: tuple[tuple[OperatorTime, ...], ...]
    grid: tuple[tuple[GridPoint, ...], ...]


def within_memory(
    asked: TimingOptions, sizes: Sequence[ModelSize], runtimes: Sequence[str], progress: Progress
) -> tuple[TimingOptions, bool]:
    """Returns what can be measured, and whether models are so large that a part of each has to run at a time.

    Args:
        asked: what is to be measured.
        sizes: of the models, which run side by side.
        runtimes: what runs them; only onnxruntime runs parts.
        progress: is told what is left out.
    """
    needed, free = sum(size.bytes for size in sizes) * _MEMORY_OF_A_BYTE, available_bytes()
    if free is None or needed <= free or set(runtimes) != {DEFAULT_RUNTIME}:
        return asked, False
    progress.note(
        f"side by side the models take about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: their "
        "outputs are compared a part at a time; times, memory and inner tensors are left out"
    )
    return TimingOptions(threads=asked.threads, latency=False, memory=False), True


def measure(
    group: SessionGroup,
    models: Sequence[JudgedModel],
    data: Dataset,
    seen: Seen,
    asked: TimingOptions,
    progress: Progress,
) -> Measurements:
    """Runs the requested measurements.

    Raises:
        UsageError: the data has fewer samples than a batch to time.
        RuntimeRefusedError: onnxruntime does not run a model.
        CalibError: a model fixes its batch to another size.
    """
    sample: tuple[Times, ...] = ()
    batch: tuple[Times, ...] = ()
    if asked.latency:
        sample, batch = _in_turns(group, seen, asked.rounds, progress)
    return Measurements(
        sample=sample,
        batch=batch,
        memory=_memories(models, seen.whole, asked.threads, progress) if asked.memory else (Memory(),) * len(models),
        cold_start=_cold_starts(models, seen.whole, asked, progress),
        operators=_profiles(models, seen.sample, asked, progress),
        grid=_grid(models, data, asked, progress),
    )


def _in_turns(
    group: SessionGroup, seen: Seen, rounds: int, progress: Progress
) -> tuple[tuple[Times, ...], tuple[Times, ...]]:
    """Times every model on one sample and on one batch."""
    outputs = seen.timed_outputs
    batch_rounds = min(rounds, _MOST_BATCH_ROUNDS)
    with progress.task("timing in turns", rounds if seen.alike else rounds + batch_rounds) as advance:
        sample = interleaved_times(group.timed(seen.sample, outputs), rounds=rounds, advance=advance)
        if seen.alike:
            return sample, sample
        batch = interleaved_times(group.timed(seen.batch, outputs), rounds=batch_rounds, advance=advance)
    return sample, batch


def _memories(models: Sequence[JudgedModel], sample: Feed, threads: int, progress: Progress) -> tuple[Memory, ...]:
    memory = []
    with progress.task("measuring memory", len(models)) as advance:
        for model in models:
            memory.append(measure_memory(model.path, sample, threads=threads, runtime=model.runtime))
            advance(1)
    for entry in memory:
        if entry.reason is not None:
            progress.note(f"peak memory is not known: {entry.reason}")
    return tuple(memory)


def _cold_starts(
    models: Sequence[JudgedModel], sample: Feed, asked: TimingOptions, progress: Progress
) -> tuple[Interval | None, ...]:
    if not asked.cold_start:
        return (None,) * len(models)
    with progress.task("starting cold", STARTS * len(models)) as advance:
        paths, runtimes = [model.path for model in models], [model.runtime for model in models]
        return cold_starts(paths, sample, threads=asked.threads, runtimes=runtimes, advance=advance)


def _profiles(
    models: Sequence[JudgedModel], sample: Feed, asked: TimingOptions, progress: Progress
) -> tuple[tuple[OperatorTime, ...], ...]:
    if not asked.profile:
        return ((),) * len(models)
    found = []
    with progress.task("profiling", len(models)) as advance:
        for model in models:
            runtime = runtime_named(model.runtime)
            found.append(runtime.operator_seconds(model.path, sample, threads=asked.threads))
            advance(1)
    return tuple(found)


def _grid(
    models: Sequence[JudgedModel], data: Dataset, asked: TimingOptions, progress: Progress
) -> tuple[tuple[GridPoint, ...], ...]:
    """Times all models in turns in every setting."""
    points: list[list[GridPoint]] = [[] for _ in models[1:]]
    if not asked.batch_sizes and not asked.thread_counts:
        return tuple(map(tuple, points))
    batch_sizes, thread_counts = asked.batch_sizes or (1,), asked.thread_counts or (asked.threads,)
    with progress.task("timing settings", asked.rounds * len(batch_sizes) * len(thread_counts)) as advance:
        for threads in thread_counts:
            with open_group(models, threads=threads) as group:
                for batch_size in batch_sizes:
                    feed = next(data.feeds(group.inputs, batch_size=batch_size))
                    if samples_in(feed) != batch_size:
                        raise UsageError(
                            f"a batch of {batch_size} cannot be timed: the models and the data make it "
                            f"{samples_in(feed)}",
                            fix="leave it out of --batch-sizes, or give data with more samples",
                        )
                    times = interleaved_times(group.timed(feed), rounds=asked.rounds, advance=advance)
                    for place, (model, quantized) in enumerate(zip(models[1:], times[1:], strict=True)):
                        reference = times[model.reference]
                        point = GridPoint(
                            batch_size=batch_size,
                            threads=threads,
                            float_ms=run_milliseconds(reference),
                            quantized_ms=run_milliseconds(quantized),
                            speedup=paired_ratio(reference, quantized),
                        )
                        points[place].append(point)
    return tuple(map(tuple, points))
