"""Dynamic post-training quantization: ranges of activations are computed at run time, without calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.atomic import staged
from qtool.backends.execution_choice import execution_for
from qtool.backends.registry import backend_named
from qtool.calib.datasets.base import Dataset
from qtool.graph.collection_pause import collection_paused
from qtool.graph.specs import model_specs
from qtool.manifest import Manifest, manifest_path, write_manifest
from qtool.metrics.size import model_bytes
from qtool.plan import DynamicPlan
from qtool.planning import build_dynamic_plan
from qtool.progress import SILENT, Progress
from qtool.runtime.free_memory import give_back_memory, return_large_pieces
from qtool.runtime.steady_draws import DRAWN_ALIKE, draws
from qtool.search.activation_forms import ActivationForm
from qtool.search.logits_view import judged_outputs
from qtool.search.output_evaluator import OutputEvaluator
from qtool.workflows.diagnose.file_records import model_record
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.checked_result import write_and_check
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.decoder_output import bring_decoder_files
from qtool.workflows.quantize.dynamic_request import DynamicReport, DynamicRequest
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.lock import check_reproduced, lock_record, locked_versions
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.quantize.prepared_model import calibration_data
from qtool.workflows.quantize.quantize_files import check_destination, float_model
from qtool.workflows.quantize.quantize_record import (
    figures_record,
    float_record,
    inputs_record,
    nodes_record,
    options_record,
)
from qtool.workflows.tune.dynamic_candidates import DynamicCandidates
from qtool.workflows.tune.dynamic_search import DynamicAttempt, DynamicChoice, DynamicSearch
from qtool.workflows.tune.embedding_tables import with_tables
from qtool.workflows.tune.search_time import SearchTime
from qtool.workflows.tune.tuning_split import TuningSplit

_EVALUATION_SAMPLES = 32


def plan_dynamic(request: DynamicRequest, progress: Progress) -> DynamicPlan:
    """Returns the plan of ``quantize_dynamic``, and writes nothing.

    Raises:
        QtoolError: the model cannot be used or quantized, or a pattern matches nothing.
        FormatError: the model file cannot be read.
    """
    dataset = None if request.data is None else request.data.open()
    model = prepare(request.source.load(progress, dataset=dataset), integers_between_layers=False)
    return build_dynamic_plan(model, request.scheme, request.selection)


def quantize_dynamic(request: DynamicRequest, progress: Progress = SILENT) -> DynamicReport:
    """Quantizes, runs the result in onnxruntime, compares it with the float model, and only then writes it.

    Raises:
        QtoolError: the model or the output cannot be used; see the subclasses.
        FormatError: the model file cannot be read.
        CalibError: the data does not fit the model.
    """
    return_large_pieces()
    output = request.destination
    check_destination(output, request.source, force=request.force)
    dataset = None if request.data is None else request.data.open()
    original = request.source.load(progress, dataset=dataset)
    # Where data decides, many candidates come and go.
    with collection_paused(len(original.graph) if dataset is None else 0):
        common.NameFixPass()(original)
        if draws(original):
            progress.note(DRAWN_ALIKE)
        return _written(original, dataset, request, progress)


def _written(original: ir.Model, dataset: Dataset | None, request: DynamicRequest, progress: Progress) -> DynamicReport:
    """Quantizes a loaded model, and writes and reports it; see ``quantize_dynamic``."""
    output = request.destination
    with staged(output) as path:
        floats = float_model(original, request.source, output, path, force=request.force)
        samples = None if dataset is None or request.data is None else _samples(original, dataset, request.data)
        made = _quantized(original, request, samples, progress)
        give_back_memory(original)
        tables = with_tables(made.model, request.selection)
        plan = replace(made.plan, skipped=tables.without_stored(made.plan.skipped))
        backend_named(request.scheme.backend).finish(tables.model, request.scheme)
        checked = write_and_check(
            tables.model,
            original,
            plan.skipped,
            path,
            samples,
            scheme=request.scheme,
            threads=request.threads,
            progress=progress,
        )
        if made.stopped is not None:
            progress.note(f"{made.stopped}: continuing with the best so far")
        report = DynamicReport(
            output=output,
            manifest=manifest_path(output),
            float_model=floats.path,
            plan=plan,
            coverage=checked.coverage,
            dead_channels=made.dead_channels,
            in_blocks=made.in_blocks,
            smoothed=made.smoothed,
            attempts=made.attempts,
            search_ended=made.stopped,
            tables=tables.stored,
            fidelity=checked.comparison.fidelity,
            outlooks=checked.comparison.outlooks,
            compared_on=checked.comparison.samples,
            compared_on_data=checked.comparison.on_data,
            float_bytes=model_bytes(floats.file),
            quantized_bytes=model_bytes(path),
        )
        manifest = _manifest(request, report, float_file=floats.file, quantized_file=path)
        check_reproduced(request.locked, manifest)
        bring_decoder_files(request.source.path, path, output)
        write_manifest(manifest_path(path), manifest, home=output.parent)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantized:
    """A quantized graph, and how it was made; see ``DynamicReport``."""

    model: ir.Model
    plan: DynamicPlan
    dead_channels: Mapping[str, tuple[int, ...]]
    in_blocks: tuple[str, ...] = ()
    smoothed: tuple[str, ...] = ()
    attempts: tuple[DynamicAttempt, ...] = ()
    stopped: str | None = None


def _samples(original: ir.Model, dataset: Dataset, data: DataRequest) -> CheckSamples:
    calibration = calibration_data(original, original, dataset, data)
    batches = calibration.data.batches(dataset, *model_specs(original))
    return CheckSamples(
        dataset=dataset, data=calibration.data, holdout=HoldoutSplit.of(batches), memory=calibration.memory
    )


def _quantized(
    original: ir.Model, request: DynamicRequest, samples: CheckSamples | None, progress: Progress
) -> _Quantized:
    """Quantizes a copy of ``original``, in the form that samples show to be best where there are some."""
    evaluation = None if samples is None else _Evaluation.of(original, request, samples)
    give_back_memory(original)

    def prepared() -> ir.Model:
        model = prepare(original.clone(), integers_between_layers=False)
        give_back_memory(original)
        return model

    if evaluation is None:
        model = prepared()
        plan = build_dynamic_plan(model, request.scheme, request.selection)
        choice = DynamicChoice(candidates=DynamicCandidates(model, plan, request.scheme))
    else:
        search = DynamicSearch(
            evaluation.evaluator,
            evaluation.samples,
            request.scheme,
            request.selection,
            progress,
            time=evaluation.time,
            settle=partial(give_back_memory, original),
            threads=request.threads,
        )
        choice = search.search(prepared)
    candidates, forms = choice.candidates, choice.forms
    model = candidates.model
    weights = candidates.quantize(model, forms)
    return _Quantized(
        model=model,
        plan=candidates.tensor_plan(forms),
        dead_channels={name: weight.dead_channels for name, weight in weights.items() if weight.dead_channels},
        in_blocks=tuple(name for name, form in forms.items() if form is ActivationForm.PER_BLOCK),
        smoothed=choice.smoothed,
        attempts=choice.attempts,
        stopped=choice.stopped,
    )


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """What forms of the model are measured with."""

    evaluator: OutputEvaluator
    samples: TuningSplit
    time: SearchTime

    @staticmethod
    def of(original: ir.Model, request: DynamicRequest, samples: CheckSamples) -> _Evaluation:
        """Runs the float model on the evaluation samples; time counts from here."""
        time = SearchTime()
        split = TuningSplit(original, samples, evaluation_samples=_EVALUATION_SAMPLES)
        execution = execution_for(request.scheme)
        feeds = split.with_room(judged_outputs(original), execution, threads=request.threads)
        evaluator = OutputEvaluator(original, feeds, view=judged_outputs, execution=execution, threads=request.threads)
        count = samples.data.available(samples.dataset) or evaluator.samples
        time.limit(evaluator.seconds * count / max(evaluator.samples, 1))
        return _Evaluation(evaluator, split, time)


def _manifest(request: DynamicRequest, report: DynamicReport, *, float_file: Path, quantized_file: Path) -> Manifest:
    """Returns the manifest of one run; the two files are the staged models."""
    inputs = inputs_record(request)
    return Manifest(
        command="quantize",
        float_model=float_record(report, float_file, inputs),
        quantized_model=model_record(report.output, quantized_file),
        inputs=inputs,
        options=options_record(request),
        versions=locked_versions(request.source),
        quantized={
            "weights": len(report.plan.stored),
            "dynamic_nodes": len(report.plan.integer_nodes),
            "nodes_in_blocks": list(report.in_blocks),
            "smoothed": list(report.smoothed),
            **nodes_record(report, report.plan.skipped),
        },
        figures=figures_record(report),
        lock={**lock_record(request.arguments), "search_ended": report.search_ended},
    )
