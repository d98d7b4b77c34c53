"""Compares quantized models with their float model: outputs, accuracy, time, size and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from calib.dataset import open_dataset
from calib.datasets.base import Dataset
from calib.datasets.batching import fixed_batch_size
from calib.datasets.images import Preprocess
from qtool.errors import InputError, RuntimeRefusedError, UsageError
from qtool.metrics.latency import latency, paired_ratio, throughput
from qtool.metrics.session_group import open_group
from qtool.metrics.size import model_bytes
from qtool.metrics.task import Metric
from qtool.progress import Progress
from qtool.report.baseline import Baseline, regressions
from qtool.report.figures import with_figures
from qtool.report.gates import Gate, check_gates, judge
from qtool.report.model import Comparison, ModelReport, Report
from qtool.report.names import display_names
from qtool.report.surroundings import machine, versions
from qtool.workflows.graphs_to_compare import graphs_of
from qtool.workflows.model_source import ModelSource
from qtool.workflows.report_layers import Inside, look_inside
from qtool.workflows.report_outputs import labels_of, refuse_labels, run_over, samples_in
from qtool.workflows.report_times import Asked, Models, measure

_USUAL_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What is to be compared, on what.

    Attributes:
        float_model: the file of the float model.
        quantized_models: the files of quantized models, at least one.
        conversion: how to make graphs of them, where they are none; its own path does not count.
        data: evaluation data, as ``open_dataset`` takes it.
        preprocess: how images become arrays.
        labels: the array with class indices; None takes ``_label`` where the data has it.
        batch_size: samples a run; None takes what the models fix, or 16.
        limit: use only the first so many samples.
        times: what is to be measured with a clock, and with how many threads.
        metric: what judges the models at their task; None for no more than labels tell.
        gates: what the report is judged by; those that cannot be judged are refused before anything runs.
        baseline: an earlier report that it must not fall behind; None for none.
        inside: whether the tensors inside are compared too.
        histograms: patterns of tensors to draw; without any, the worst ones are drawn.
    """

    float_model: Path
    quantized_models: tuple[Path, ...]
    data: str
    conversion: ModelSource | None = None
    preprocess: Preprocess | None = None
    labels: str | None = None
    batch_size: int | None = None
    limit: int | None = None
    times: Asked = field(default_factory=Asked)
    metric: Metric | None = None
    gates: tuple[Gate, ...] = ()
    baseline: Baseline | None = None
    inside: Literal["no", "if possible", "yes"] = "no"
    histograms: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[Path, ...]:
        """The float model, then the quantized ones."""
        return (self.float_model, *self.quantized_models)


def compare(request: ReportRequest, progress: Progress) -> Report:
    """Runs all models over the data, side by side, and returns what was found.

    Raises:
        InputError: a model is missing, they do not belong together, or the labels do not fit.
        FormatError: a model is damaged, or cannot be converted.
        UsageError: labels, gates or baseline ask for what is not there.
        RuntimeRefusedError: onnxruntime does not load or run a model.
        CalibError: the data does not fit the models.
    """
    data = open_dataset(request.data, preprocess=request.preprocess)
    with graphs_of(request.models, request.conversion, data, progress) as paths:
        return _judged(_compare(request, data, paths, progress), request)


def _judged(report: Report, request: ReportRequest) -> Report:
    verdicts = [verdict for comparison in report.comparisons for verdict in judge(comparison, request.gates)]
    if request.baseline is not None:
        verdicts += regressions(report, request.baseline)
    return replace(report, verdicts=tuple(verdicts))


def _compare(request: ReportRequest, data: Dataset, paths: Sequence[Path], progress: Progress) -> Report:
    """Compares the graphs in ``paths``, which the models of ``request`` are or became."""
    sizes = [model_bytes(path) for path in paths]
    names = display_names(request.models)
    labels = labels_of(data, request.labels, where=request.data)
    asked, metric = request.times, request.metric
    if metric is not None and metric.needs_labels and labels is None:
        raise UsageError(
            f"the metric '{metric.name}' needs labels and the data has none",
            fix="name the array of class indices with --labels, or store it as '_label'",
        )
    group = open_group(paths, names, threads=asked.threads)
    rounds = asked.rounds if asked.latency else 0
    check_gates(
        request.gates,
        outputs=[spec.name for spec in group.outputs],
        labels=labels is not None and not (metric is not None and metric.owns_labels),
        rounds=rounds,
        cold_start=asked.cold_start,
        metric=metric is not None,
    )
    batch_size = request.batch_size or fixed_batch_size(group.inputs) or _USUAL_BATCH_SIZE
    seen = run_over(group, data, labels, metric, batch_size=batch_size, limit=request.limit, progress=progress)
    if labels is not None and not seen.accuracy and metric is None:
        refuse_labels(labels, given=request.labels is not None, progress=progress)
    found = measure(group, Models(tuple(paths), names), data, seen, asked, progress)
    inside = _inside(paths, data, request, progress)
    models = [
        ModelReport(
            name=names[place],
            path=str(path),
            size_bytes=sizes[place],
            accuracy=seen.accuracy[place] if seen.accuracy else None,
            metric=seen.metric[place] if seen.metric else None,
            latency=latency(found.sample[place]) if found.sample else None,
            throughput=throughput(found.batch[place], batch_size=samples_in(seen.batch)) if found.batch else None,
            memory=found.memory[place],
            cold_start=found.cold_start[place],
            operators=found.operators[place],
        )
        for place, path in enumerate(request.models)
    ]
    comparisons = [
        Comparison(
            float_model=models[0],
            quantized_model=model,
            fidelity=seen.fidelity[place],
            speedup=paired_ratio(found.sample[0], found.sample[place + 1]) if found.sample else None,
            classes=seen.classes[place],
            samples=seen.changed[place],
            layers=inside[place].layers,
            histograms=inside[place].histograms,
            grid=found.grid[place],
        )
        for place, model in enumerate(models[1:])
    ]
    return Report(
        comparisons=tuple(map(with_figures, comparisons)),
        data=request.data,
        labels=labels.name if labels is not None and (seen.accuracy or seen.metric) else None,
        metric=None if metric is None else metric.name,
        samples=seen.samples,
        batch_size=samples_in(seen.batch),
        threads=asked.threads,
        rounds=rounds,
        versions=versions(),
        machine=machine(),
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
