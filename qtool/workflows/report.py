"""Compares a quantized model with its float model: outputs, accuracy, time, size and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.dataset import open_dataset
from calib.datasets.base import Dataset
from calib.datasets.batching import fixed_batch_size
from calib.datasets.images import Preprocess
from calib.specs import Array, Feed, TensorSpec
from qtool.errors import InputError, UsageError
from qtool.metrics.accuracy import AccuracyMeter
from qtool.metrics.fidelity import FidelityMeter
from qtool.metrics.latency import Times, interleaved_times, latency, paired_ratio, throughput
from qtool.metrics.memory import Memory, measure_memory
from qtool.metrics.pair import SessionPair, open_pair
from qtool.metrics.size import model_bytes
from qtool.progress import Progress
from qtool.report.gates import Gate, check_gates
from qtool.report.model import ModelReport, Report
from qtool.report.surroundings import machine, versions
from qtool.workflows.graphs_to_compare import graphs_of
from qtool.workflows.model_source import ModelSource

_USUAL_LABELS = "_label"
_USUAL_BATCH_SIZE = 16
# Batches take long and vary little; their times have no confidence interval to narrow.
_MOST_BATCH_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What is to be compared, on what.

    Attributes:
        float_model: the file of the float model.
        quantized_model: the file of the quantized model.
        conversion: how to make graphs of them, where they are none; its own path does not count.
        data: evaluation data, as ``open_dataset`` takes it.
        preprocess: how images become arrays.
        labels: the array with class indices; None takes ``_label`` where the data has it.
        batch_size: samples a run; None takes what the models fix, or 16.
        limit: use only the first so many samples.
        threads: threads inside an operator; 0 is one a core.
        rounds: rounds of the latency measurement; throughput takes 10 of them at most.
        latency: whether to measure it.
        gates: what the report will be judged by; those that cannot be judged are refused before anything runs.
    """

    float_model: Path
    quantized_model: Path
    data: str
    conversion: ModelSource | None = None
    preprocess: Preprocess | None = None
    labels: str | None = None
    batch_size: int | None = None
    limit: int | None = None
    threads: int = 0
    rounds: int = 25
    latency: bool = True
    gates: tuple[Gate, ...] = ()


def compare(request: ReportRequest, progress: Progress) -> Report:
    """Runs both models over the data, side by side, and returns what was found.

    Raises:
        InputError: a model is missing, the two do not belong together, or the labels do not fit.
        FormatError: a model is damaged, or cannot be converted.
        UsageError: labels or gates ask for what is not there.
        RuntimeRefusedError: onnxruntime does not load or run a model.
        CalibError: the data does not fit the models.
    """
    data = open_dataset(request.data, preprocess=request.preprocess)
    names = (request.float_model, request.quantized_model)
    with graphs_of(names, request.conversion, data, progress) as paths:
        return _compare(request, data, paths, progress)


def _compare(request: ReportRequest, data: Dataset, paths: Sequence[Path], progress: Progress) -> Report:
    """Compares the graphs in ``paths``, which the models of ``request`` are or became."""
    sizes = [model_bytes(path) for path in paths]
    labels_name, labels = _labels(data, request)
    pair = open_pair(paths[0], paths[1], threads=request.threads)
    check_gates(
        request.gates,
        outputs=[spec.name for spec in pair.outputs],
        labels=labels is not None,
        latency=request.latency,
    )
    seen = _stream(pair, data, labels, request, progress)
    if labels is not None and seen.accuracy is None:
        _refuse_labels(labels_name, given=request.labels is not None, progress=progress)
    timing = _time(pair, seen, request.rounds, progress) if request.latency else None
    memory = _memory(paths, seen.sample, request.threads, progress)
    models = [
        ModelReport(
            path=str(name),
            size_bytes=sizes[place],
            accuracy=None if seen.accuracy is None else seen.accuracy[place].result(),
            latency=None if timing is None else latency(timing.sample[place]),
            throughput=None if timing is None else throughput(timing.batch[place], batch_size=_rows(seen.batch)),
            memory=memory[place],
        )
        for place, name in enumerate((request.float_model, request.quantized_model))
    ]
    return Report(
        float_model=models[0],
        quantized_model=models[1],
        fidelity=seen.fidelity.results(),
        speedup=None if timing is None else paired_ratio(*timing.sample),
        data=request.data,
        labels=None if seen.accuracy is None else labels_name,
        samples=seen.samples,
        batch_size=_rows(seen.batch),
        threads=request.threads,
        rounds=request.rounds if request.latency else 0,
        versions=versions(),
        machine=machine(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the pass over the data leaves behind: meters, and one sample and one batch to time the models on."""

    fidelity: FidelityMeter
    accuracy: tuple[AccuracyMeter, AccuracyMeter] | None
    samples: int
    sample: Feed
    batch: Feed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timing:
    """Seconds a run of the float and of the quantized model."""

    sample: tuple[Times, ...]
    batch: tuple[Times, ...]


def _labels(data: Dataset, request: ReportRequest) -> tuple[str, Array | None]:
    name = request.labels or _USUAL_LABELS
    labels = data.array(name)
    if labels is None and request.labels is not None:
        known = ", ".join(spec.name for spec in data.specs() if spec.name) or "none by name"
        raise UsageError(
            f"{request.data} has no array '{name}' to take labels from",
            fix=f"store one class index a sample under this name (arrays it has: {known})",
        )
    return name, labels


def _refuse_labels(name: str, *, given: bool, progress: Progress) -> None:
    why = "the models have no float output of the shape (samples, classes)"
    if given:
        raise UsageError(f"labels were given, but {why}", fix="leave --labels out")
    progress.note(f"the labels '{name}' are not used: {why}")


def _stream(
    pair: SessionPair, data: Dataset, labels: Array | None, request: ReportRequest, progress: Progress
) -> _Seen:
    inputs = pair.inputs
    fidelity, accuracy = FidelityMeter(), None
    classes: str | None = None
    batch: Feed | None = None
    samples = 0
    feeds = data.feeds(inputs, batch_size=_batch_size(inputs, request), limit=request.limit, remark=progress.note)
    with progress.task("comparing outputs", _total(data.count, request.limit)) as advance:
        for feed in feeds:
            expected, got = pair.run(feed)
            fidelity.add(expected, got)
            if batch is None:
                batch = feed
                classes = _classes_output(expected)
                if labels is not None and classes is not None:
                    name = request.labels or _USUAL_LABELS
                    accuracy = (AccuracyMeter(labels, name=name), AccuracyMeter(labels, name=name))
            if accuracy is not None and classes is not None:
                accuracy[0].add(expected[classes])
                accuracy[1].add(got[classes])
            samples += _rows(feed)
            advance(_rows(feed))
    if batch is None:
        raise InputError(f"{request.data} has no samples", fix="give data with at least one sample")
    sample = next(data.feeds(inputs, batch_size=1))
    return _Seen(fidelity=fidelity, accuracy=accuracy, samples=samples, sample=sample, batch=batch)


def _time(pair: SessionPair, seen: _Seen, rounds: int, progress: Progress) -> _Timing:
    alike = _rows(seen.sample) == _rows(seen.batch)
    batch_rounds = min(rounds, _MOST_BATCH_ROUNDS)
    with progress.task("timing in turns", rounds if alike else rounds + batch_rounds) as advance:
        sample = interleaved_times(pair.timed(seen.sample), rounds=rounds, advance=advance)
        batch = sample if alike else interleaved_times(pair.timed(seen.batch), rounds=batch_rounds, advance=advance)
    return _Timing(sample=sample, batch=batch)


def _memory(paths: Sequence[Path], sample: Feed, threads: int, progress: Progress) -> list[Memory]:
    memory = []
    with progress.task("measuring memory", len(paths)) as advance:
        for path in paths:
            memory.append(measure_memory(path, sample, threads=threads))
            advance(1)
    for entry in memory:
        if entry.reason is not None:
            progress.note(f"peak memory is not known: {entry.reason}")
    return memory


def _batch_size(inputs: tuple[TensorSpec, ...], request: ReportRequest) -> int:
    if request.batch_size is not None:
        return request.batch_size
    return fixed_batch_size(inputs) or _USUAL_BATCH_SIZE


def _classes_output(outputs: Feed) -> str | None:
    """Returns the first output that looks like one score a class."""
    for name, value in outputs.items():
        if value.ndim == 2 and value.shape[1] >= 2 and np.issubdtype(value.dtype, np.floating):
            return name
    return None


def _total(count: int | None, limit: int | None) -> int | None:
    return limit if count is None else min(count, limit or count)


def _rows(feed: Feed) -> int:
    first = next(iter(feed.values()))
    return len(first) if first.ndim else 1
