"""Compares quantized models with their float model: outputs, accuracy, time, size and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from qtool.backends.execution import NODE_BY_NODE
from qtool.backends.execution_choice import execution_of_file
from qtool.calib.datasets.base import Dataset
from qtool.calib.datasets.images import Preprocess
from qtool.calib.specs import samples_in
from qtool.errors import InputError, RuntimeRefusedError
from qtool.metrics.latency import latency, paired_ratio, throughput
from qtool.metrics.session_group import SessionGroup, evaluation_group, open_group
from qtool.metrics.size_by_kind import ModelSize, model_size
from qtool.metrics.task import Metric
from qtool.progress import SILENT, Progress
from qtool.reporting.baseline import Baseline, regressions
from qtool.reporting.figures import with_figures
from qtool.reporting.gates import Gate, check_gates, judge_all
from qtool.reporting.model import ModelComparison, ModelReport, Report, UsedData, Verdict
from qtool.reporting.names import display_names
from qtool.reporting.surroundings import machine, versions
from qtool.runtime.steady_draws import DRAWN_ALIKE, file_draws
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.diagnose.overflow import OVERFLOW_FIX, overflow_told, warn_of_overflow
from qtool.workflows.report.graphs_to_compare import graphs_of
from qtool.workflows.report.report_data import DataSource, OpenData, open_data, refuse_labels
from qtool.workflows.report.report_layers import Inside, look_inside
from qtool.workflows.report.report_outputs import Seen, run_over, usual_batch_size
from qtool.workflows.report.report_times import Measurements, Models, TimingOptions, measure

# The condition that is added to the gates where sums can overflow.
SUMS_HOLD = "integer sums hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """The options of a report.

    Attributes:
        float_model: the file of the float model.
        quantized_models: the files of quantized models, at least one.
        conversion: how to make graphs of them, where they are none; its own path does not count.
        datasets: evaluation data, at least one; times are measured on the first.
        preprocess: how images become arrays.
        labels: the array with class indices; None takes ``_label`` where the data has it.
        batch_size: samples per run; None takes what the models fix, 1 where the data cannot be taken apart, or 16.
        limit: use only the first so many samples.
        times: the options of time measurements.
        metric: the metric of the models' task; None for accuracy on labels only.
        gates: conditions on the report; those that cannot be evaluated are refused before anything runs.
        baseline: an earlier report to compare with; None for none.
        inside: whether inner tensors are compared too.
        histograms: patterns of tensors to draw; without any, the worst ones are drawn.
    """

    float_model: Path
    quantized_models: tuple[Path, ...]
    datasets: tuple[DataSource, ...]
    conversion: ModelSource | None = None
    preprocess: Preprocess | None = None
    labels: str | None = None
    batch_size: int | None = None
    limit: int | None = None
    times: TimingOptions = field(default_factory=TimingOptions)
    metric: Metric | None = None
    gates: tuple[Gate, ...] = ()
    baseline: Baseline | None = None
    inside: Literal["no", "if possible", "yes"] = "no"
    histograms: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[Path, ...]:
        """The float model, then the quantized ones."""
        return (self.float_model, *self.quantized_models)


def compare(request: ReportRequest, progress: Progress = SILENT) -> Report:
    """Runs all models over the data, side by side, and returns the report.

    Raises:
        InputError: a model is missing, they do not belong together, or the labels do not fit.
        FormatError: a model is damaged, or cannot be converted.
        UsageError: datasets, labels, gates or the baseline name something that does not exist.
        RuntimeRefusedError: onnxruntime does not load or run a model.
        CalibError: the data does not fit the models.
    """
    opened = open_data(request.datasets, preprocess=request.preprocess, labels=request.labels, metric=request.metric)
    with graphs_of(request.models, request.conversion, opened[0].data, progress) as paths:
        return _judged(_compare(request, opened, paths, progress), request)


def _judged(report: Report, request: ReportRequest) -> Report:
    verdicts = judge_all(report, request.gates)
    if request.gates or request.baseline is not None:
        verdicts += _judged_sums(report)
    if request.baseline is not None:
        verdicts += regressions(report, request.baseline)
    return replace(report, verdicts=verdicts)


def _judged_sums(report: Report) -> tuple[Verdict, ...]:
    """Fails every model whose sums overflow here, since its figures differ on other machines."""
    return tuple(
        Verdict(
            model=model.name,
            condition=SUMS_HOLD,
            outcome="failed",
            message=overflow_told(model.name, model.overflowing_layers),
            fix=OVERFLOW_FIX,
        )
        for model in report.models
        if model.overflowing_layers
    )


def _compare(request: ReportRequest, opened: Sequence[OpenData], paths: Sequence[Path], progress: Progress) -> Report:
    """Compares the graphs in ``paths``, those of the models of ``request``."""
    asked = request.times
    names = display_names(request.models)
    sizes = [model_size(path) for path in paths]
    # The float model may itself be quantized, by another tool.
    overflowing = [warn_of_overflow(path, name, progress) for path, name in zip(paths, names, strict=True)]
    _tell_of_execution(paths, names, progress)
    group = open_group(paths, names, threads=asked.threads)
    rounds = asked.rounds if asked.latency else 0
    for entry in opened:
        _check_gates(request, entry, group, rounds)
    batch_size = request.batch_size or usual_batch_size(group.inputs, [entry.data for entry in opened])
    seen = []
    with evaluation_group(group, paths, names, threads=asked.threads) as judged:
        for entry in opened:
            found = run_over(
                judged, entry, request.metric, batch_size=batch_size, limit=request.limit, progress=progress
            )
            if entry.labels is not None and not found.accuracy and request.metric is None:
                refuse_labels(entry.labels, given=request.labels is not None, progress=progress)
            seen.append(found)
    # Times do not depend on the values, so they are measured on the first dataset.
    first = seen[0]
    measured = measure(group, Models(tuple(paths), names), opened[0].data, first, asked, progress)
    inside = _inside(paths, opened[0].data, request, progress)
    models = [
        replace(
            _measured(names[place], path, size, place, measured, samples_in(first.batch)),
            overflowing_layers=overflowing[place],
        )
        for place, (path, size) in enumerate(zip(request.models, sizes, strict=True))
    ]
    comparisons = []
    for place, (entry, found) in enumerate(zip(opened, seen, strict=True)):
        nothing = [Inside() for _ in inside]
        comparisons += _comparisons(request, entry.name, models, found, measured, nothing if place else inside)
    return Report(
        comparisons=tuple(map(with_figures, comparisons)),
        datasets=tuple(_used(entry, found) for entry, found in zip(opened, seen, strict=True)),
        metric=None if request.metric is None else request.metric.name,
        batch_size=samples_in(first.batch),
        threads=asked.threads,
        rounds=rounds,
        versions=versions(),
        machine=machine(),
    )


def _tell_of_execution(paths: Sequence[Path], names: Sequence[str], progress: Progress) -> None:
    """Notes models whose outputs are not those of a plain run on this machine."""
    if any(map(file_draws, paths)):
        progress.note(DRAWN_ALIKE)
    for path, name in zip(paths, names, strict=True):
        if execution_of_file(path) == NODE_BY_NODE:
            progress.note(
                f"{name} is for another machine and not run on it: its outputs are those of Q and DQ node by node"
            )


def _measured(
    name: str,
    path: Path,
    size: ModelSize,
    place: int,
    measured: Measurements,
    batch_size: int,
) -> ModelReport:
    """Returns the figures that do not depend on the data."""
    return ModelReport(
        name=name,
        path=str(path),
        size_bytes=size.bytes,
        accuracy=None,
        latency=latency(measured.sample[place]) if measured.sample else None,
        throughput=throughput(measured.batch[place], batch_size=batch_size) if measured.batch else None,
        memory=measured.memory[place],
        cold_start=measured.cold_start[place],
        operators=measured.operators[place],
        size_parts=size.parts,
    )


def _comparisons(
    request: ReportRequest,
    dataset: str,
    models: Sequence[ModelReport],
    found: Seen,
    measured: Measurements,
    inside: Sequence[Inside],
) -> list[ModelComparison]:
    """Joins the figures of one dataset with the other measurements."""
    judged = [
        replace(
            model,
            accuracy=found.accuracy[place] if found.accuracy else None,
            metric=found.metric[place] if found.metric else None,
        )
        for place, model in enumerate(models)
    ]
    return [
        ModelComparison(
            dataset=dataset,
            float_model=judged[0],
            quantized_model=model,
            fidelity=found.fidelity[place],
            speedup=paired_ratio(measured.sample[0], measured.sample[place + 1]) if measured.sample else None,
            classes=found.classes[place],
            samples=found.changed[place],
            layers=inside[place].layers,
            histograms=inside[place].histograms,
            grid=measured.grid[place],
            lower_is_better=request.metric is not None and request.metric.lower_is_better,
        )
        for place, model in enumerate(judged[1:])
    ]


def _check_gates(request: ReportRequest, entry: OpenData, group: SessionGroup, rounds: int) -> None:
    metric = request.metric
    check_gates(
        request.gates,
        outputs=[spec.name for spec in group.outputs],
        labels=entry.labels is not None and not (metric is not None and metric.owns_labels),
        rounds=rounds,
        cold_start=request.times.cold_start,
        metric=metric is not None,
        data="the data" if len(request.datasets) == 1 else entry.name,
    )


def _used(entry: OpenData, found: Seen) -> UsedData:
    used = entry.labels is not None and (found.accuracy or found.metric)
    return UsedData(
        name=entry.name,
        source=entry.source,
        labels=entry.labels.name if entry.labels is not None and used else None,
        samples=found.samples,
    )


def _inside(paths: Sequence[Path], data: Dataset, request: ReportRequest, progress: Progress) -> list[Inside]:
    if request.inside == "no" and not request.histograms:
        return [Inside() for _ in paths[1:]]
    try:
        return [
            look_inside(
                paths[0],
                path,
                data,
                limit=request.limit,
                histograms=request.histograms,
                threads=request.times.threads,
                progress=progress,
            )
            for path in paths[1:]
        ]
    except (InputError, RuntimeRefusedError) as error:
        if request.inside == "yes" or request.histograms:
            raise
        progress.note(f"the tensors inside are not compared: {error.problem}")
        return [Inside() for _ in paths[1:]]
