"""Compares quantized models with their float model: outputs, accuracy, time, size and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from qtool.backends.execution_choice import target_of_file
from qtool.backends.runtimes import DEFAULT_RUNTIME, runtime_named
from qtool.calib.datasets.images import Preprocess
from qtool.calib.datasets.text_file import TextOptions
from qtool.calib.datasets.zero_states import ZeroStates
from qtool.calib.specs import samples_in
from qtool.metrics.latency import latency, paired_ratio, throughput
from qtool.metrics.session_group import JudgedModel, SessionGroup, evaluation_group, judged_models, open_group
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
from qtool.search.output_evaluator import FLOATS_ALIKE_DB, floats_differ, worst_sqnr_db
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.diagnose.overflow import OVERFLOW_FIX, overflow_told, warn_of_overflow
from qtool.workflows.report.graphs_to_compare import graphs_of
from qtool.workflows.report.report_data import DataSource, OpenData, open_data, refuse_labels
from qtool.workflows.report.report_layers import Inside, looked_inside
from qtool.workflows.report.report_outputs import Seen, run_over, usual_batch_size
from qtool.workflows.report.report_text import (
    NEW_TOKENS,
    answers_of,
    asked_prompts,
    check_text,
    run_over_text,
    times_of_tokens,
)
from qtool.workflows.report.report_times import Measurements, TimingOptions, measure, within_memory

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
        runtimes: what runs the models, keys of ``RUNTIMES``, at least one; each runs all of them.
        text: how text becomes tokens; None where no tokenizer is known.
        prompts: what language models are to go on with.
        new_tokens: how many tokens they add to a prompt at most.
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
    runtimes: tuple[str, ...] = (DEFAULT_RUNTIME,)
    text: TextOptions | None = None
    prompts: tuple[str, ...] = ()
    new_tokens: int = NEW_TOKENS

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
    for runtime in request.runtimes:
        runtime_named(runtime).load()
    opened = open_data(
        request.datasets,
        preprocess=request.preprocess,
        labels=request.labels,
        metric=request.metric,
        text=request.text,
    )
    check_text(opened, request.batch_size)
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
    names = display_names(request.models)
    judged = judged_models(paths, names, request.runtimes)
    sizes = [model_size(path) for path in paths]
    asked, in_parts = within_memory(request.times, sizes, request.runtimes, progress)
    # The float model may itself be quantized, by another tool.
    overflowing = [warn_of_overflow(model.path, model.name, progress, model.runtime) for model in judged]
    if any(map(file_draws, paths)):
        progress.note(DRAWN_ALIKE)
    targets = [target_of_file(path) for path in paths]
    misplaced = [_misplaced(model, targets[model.model], progress) for model in judged]
    rounds = asked.rounds if asked.latency else 0
    seen = []
    prompts = asked_prompts(request.prompts, request.text, request.new_tokens, request.models)
    references = [model.reference for model in judged]
    with open_group(judged, threads=asked.threads, in_parts=in_parts) as group:
        opened = [replace(entry, data=ZeroStates(entry.data, group.outputs)) for entry in opened]
        for entry in opened:
            _check_gates(request, entry, group, rounds)
        batch_size = request.batch_size or usual_batch_size(group.inputs, [entry.data for entry in opened])
        with evaluation_group(group, judged, threads=asked.threads, in_parts=in_parts) as evaluated:
            said = answers_of(evaluated, references, prompts, progress)
            for entry in opened:
                if entry.tokenizer is not None:
                    limit = request.limit
                    seen.append(
                        run_over_text(
                            evaluated, entry, request.metric, references=references, limit=limit, progress=progress
                        )
                    )
                    continue
                found = run_over(
                    evaluated,
                    entry,
                    request.metric,
                    references=references,
                    batch_size=batch_size,
                    limit=request.limit,
                    progress=progress,
                )
                if entry.labels is not None and not found.accuracy and request.metric is None:
                    refuse_labels(entry.labels, given=request.labels is not None, progress=progress)
                seen.append(found)
        _tell_of_floats(judged, seen[0], progress)
        # Times do not depend on the values, so they are measured on the first dataset.
        first = seen[0]
        measured = measure(group, judged, opened[0].data, first, asked, progress)
    inside = looked_inside(
        paths,
        opened[0],
        inside="no" if in_parts else request.inside,
        limit=request.limit,
        histograms=() if in_parts else request.histograms,
        threads=asked.threads,
        progress=progress,
    )
    tokens = times_of_tokens(first.text, references, measured.sample, measured.batch)
    batched = samples_in(first.batch) if first.text is None else None
    models = [
        replace(
            _measured(model.name, request.models[model.model], sizes[model.model], place, measured, batched),
            token_times=tokens[place],
            overflowing_layers=overflowing[place],
            runtime=model.runtime,
            target=targets[model.model],
            misplaced=misplaced[place],
        )
        for place, model in enumerate(judged)
    ]
    comparisons = []
    for place, (entry, found) in enumerate(zip(opened, seen, strict=True)):
        looked_at = {} if place else dict(enumerate(inside, 1))
        entries = _comparisons(request, entry.name, judged, models, found, measured, looked_at)
        comparisons += [replace(each, answers=own) for each, own in zip(entries, said, strict=True)]
    return Report(
        comparisons=tuple(map(with_figures, comparisons)),
        datasets=tuple(_used(entry, found) for entry, found in zip(opened, seen, strict=True)),
        metric=None if request.metric is None else request.metric.name,
        batch_size=samples_in(first.batch),
        threads=asked.threads,
        rounds=rounds,
        versions=versions([runtime_named(name).package for name in request.runtimes]),
        machine=machine(),
    )


def _tell_of_floats(judged: Sequence[JudgedModel], seen: Seen, progress: Progress) -> None:
    """Warns where the float model itself has other outputs in one runtime than in the first."""
    for place, model in enumerate(judged):
        if place and model.model == 0:
            apart = worst_sqnr_db(seen.fidelity[place - 1])
            if apart < FLOATS_ALIKE_DB:
                progress.warn(floats_differ(apart, runtime_named(model.runtime).title))


def _misplaced(model: JudgedModel, target: str | None, progress: Progress) -> str | None:
    """Warns of a model that is judged on another runtime than it was quantized for, and returns what that means."""
    runtime = runtime_named(model.runtime)
    if runtime.serves(target):
        return None
    by_meaning = runtime.judging(target) != runtime.judging(None)
    outputs = "those of Q and DQ node by node" if by_meaning else f"those of {runtime.title}'s kernels"
    meaning = f"its outputs are {outputs}, its times those of {runtime.title} on this machine"
    progress.warn(f"{model.name} is for another machine: it was quantized for --target {target}; {meaning}")
    return meaning


def _measured(
    name: str,
    path: Path,
    size: ModelSize,
    place: int,
    measured: Measurements,
    batch_size: int | None,
) -> ModelReport:
    """Returns the figures that do not depend on the data; those of batches where there are some."""
    return ModelReport(
        name=name,
        path=str(path),
        size_bytes=size.bytes,
        accuracy=None,
        latency=latency(measured.sample[place]) if measured.sample else None,
        throughput=throughput(measured.batch[place], batch_size=batch_size) if measured.batch and batch_size else None,
        memory=measured.memory[place],
        cold_start=measured.cold_start[place],
        operators=measured.operators[place],
        size_parts=size.parts,
    )


def _comparisons(
    request: ReportRequest,
    dataset: str,
    judged: Sequence[JudgedModel],
    models: Sequence[ModelReport],
    found: Seen,
    measured: Measurements,
    inside: Mapping[int, Inside],
) -> list[ModelComparison]:
    """Joins the figures of one dataset with the other measurements."""
    figures = [
        replace(
            model,
            accuracy=found.accuracy[place] if found.accuracy else None,
            metric=found.metric[place] if found.metric else None,
            perplexity=found.text.perplexities[place] if found.text is not None else None,
        )
        for place, model in enumerate(models)
    ]
    return [
        ModelComparison(
            dataset=dataset,
            float_model=figures[model.reference],
            quantized_model=figures[place],
            fidelity=found.fidelity[place - 1],
            speedup=paired_ratio(measured.sample[model.reference], measured.sample[place]) if measured.sample else None,
            classes=found.classes[place - 1],
            samples=found.changed[place - 1],
            language=found.text.scores[place - 1] if found.text is not None else None,
            layers=inside.get(place, Inside()).layers,
            histograms=inside.get(place, Inside()).histograms,
            grid=measured.grid[place - 1],
            lower_is_better=request.metric is not None and request.metric.lower_is_better,
            is_float=model.model == 0,
        )
        for place, model in enumerate(judged)
        if place
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
        text=entry.tokenizer is not None,
        data="the data" if len(request.datasets) == 1 else entry.name,
    )


def _used(entry: OpenData, found: Seen) -> UsedData:
    used = entry.labels is not None and (found.accuracy or found.metric)
    return UsedData(
        name=entry.name,
        source=entry.source,
        labels=entry.labels.name if entry.labels is not None and used else None,
        samples=found.samples,
        tokens=None if found.text is None else found.text.predicted,
    )
