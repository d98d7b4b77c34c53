"""Static post-training quantization of a model, with a check of the result before it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.atomic import staged
from qtool.backends.execution_choice import execution_for
from qtool.backends.onnxruntime_cpu.coverage import integer_coverage
from qtool.backends.registry import backend_named
from qtool.calib.collect import Collected
from qtool.calib.statistics_file import StoredStatistics, read_statistics
from qtool.errors import InputError, UsageError
from qtool.fingerprint import graph_fingerprint
from qtool.graph.specs import model_specs
from qtool.manifest import manifest_path, write_manifest
from qtool.metrics.size import model_bytes
from qtool.plan import Plan
from qtool.planning import build_plan
from qtool.progress import SILENT, Progress
from qtool.quantizer import Findings, quantize_graph, unfit_tensors
from qtool.runtime.steady_draws import DRAWN_ALIKE, draws
from qtool.workflows.convert.model_source import save_graph
from qtool.workflows.quantize.calibrate import Watched, gather, single_sample
from qtool.workflows.quantize.check_result import CheckSamples, compare_with_float
from qtool.workflows.quantize.data_request import USUAL_BATCH_SIZE
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.lock import check_reproduced
from qtool.workflows.quantize.planned_float import as_planned
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.quantize.quantize_files import check_destination, float_model
from qtool.workflows.quantize.quantize_record import manifest_of
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.quantize.request import QuantizeReport, QuantizeRequest
from qtool.workflows.tune.accuracy_target import AccuracyTarget
from qtool.workflows.tune.activation_memory import ActivationMemory
from qtool.workflows.tune.embedding_tables import Tables, with_tables
from qtool.workflows.tune.quantization_search import QuantizationSearch, Start
from qtool.workflows.tune.rewriting import Rewritten
from qtool.workflows.tune.time_plan import is_slower


def plan_quantization(request: QuantizeRequest, progress: Progress) -> Plan:
    """Returns the plan of ``quantize``, without data, and writes nothing.

    Raises:
        QtoolError: the model cannot be used or quantized, or a pattern matches nothing.
        FormatError: the model file cannot be read.
    """
    dataset = None if request.data is None else request.data.open()
    model = request.source.load(progress, dataset=dataset)
    model = prepare(model, integers_between_layers=request.scheme.integers_between_layers)
    return _plan(model, request)


def quantize(request: QuantizeRequest, progress: Progress = SILENT) -> QuantizeReport:
    """Quantizes, runs the result in onnxruntime, compares it with the float model, and only then writes it.

    Raises:
        UsageError: there is neither data nor statistics.
        QtoolError: the model, the statistics or the output cannot be used; see the subclasses.
        FormatError: the model file cannot be read.
        CalibError: the data does not fit the model.
    """
    _check_request(request)
    output = request.destination
    stored = None if request.statistics is None else read_statistics(request.statistics)
    dataset = None if request.data is None else request.data.open()
    original = request.source.load(progress, dataset=dataset)
    # Nodes keep one name through all steps, which reports refer to.
    common.NameFixPass()(original)
    if draws(original):
        progress.note(DRAWN_ALIKE)
    with staged(output) as path:
        floats = float_model(original, request.source, output, path, force=request.force)
        model = prepare(original.clone(), integers_between_layers=request.scheme.integers_between_layers)
        _plan(model, request)  # patterns that match nothing are refused before anything runs
        samples = single = None
        if dataset is not None and request.data is not None:
            single = single_sample(original, dataset, request.data)
            memory = ActivationMemory.of(model, single)
            data = replace(request.data, usual_batch_size=memory.batch_size(USUAL_BATCH_SIZE))
            # Stored statistics include all of the data: nothing can be held out from them.
            batches = data.batches(dataset, *model_specs(original)) if stored is None else 0
            samples = CheckSamples(dataset=dataset, data=data, holdout=HoldoutSplit.of(batches), memory=memory)
        search = QuantizationSearch(
            original,
            request.scheme,
            request.selection,
            request.searches,
            samples if stored is None else None,
            progress,
            timed_on=single,
            threads=request.threads,
        )
        starts = [_start(rewritten, stored, samples, request, progress) for rewritten in search.rewritten(model)]
        times = search.timed(starts[0].candidates, request.timing) if request.asks_for_times else None
        if times is not None:
            slow = times.slow_nodes()
            starts = [replace(start, candidates=replace(start.candidates, slow=slow)) for start in starts]
        start = search.corrected(starts)
        rewritten, candidates = start.rewritten, search.unsigned(start.candidates, times)
        execution = execution_for(request.scheme)
        target, found, fallback = None, None, None
        kept: dict[str, str] = {}
        if request.goal is not None and samples is not None and times is not None:
            target = AccuracyTarget(original, request.goal, samples, execution=execution, threads=request.threads)
            found = target.search(candidates.model, candidates, times.cost(), progress, budget_s=request.time_budget_s)
            kept = found.kept_float
        else:
            candidates, fallback = search.float_fallback(candidates, times, budget_s=request.time_budget_s)
            kept = {} if fallback is None else fallback.choice.kept_float()
        candidates = search.fitted(candidates, kept)
        allows_tables = (target or search).allows_tables
        made = _made(original, candidates, kept, request, allows_tables)
        speedup = search.speedup(made.model)
        # A choice made layer by layer can still be slower than float.
        while times is not None and speedup is not None and is_slower(speedup) and times.keep_more():
            candidates = replace(candidates, slow=times.slow_nodes())
            made = _made(original, candidates, kept, request, allows_tables)
            speedup = search.speedup(made.model)
        model, plan, tables = made.model, made.plan, made.tables
        save_graph(model, path)
        progress.note("checking the result in onnxruntime")
        with progress.task("comparing with float"):
            here = backend_named(request.scheme.backend).has_kernels_here
            coverage = as_planned(integer_coverage(model), plan.skipped, has_kernels_here=here)
            comparison = compare_with_float(original, path, samples, execution=execution, threads=request.threads)
        if search.stopped is not None:
            progress.note(f"{search.stopped}: continuing with the best so far")
        report = QuantizeReport(
            output=output,
            manifest=manifest_path(output),
            float_model=floats.path,
            plan=plan,
            coverage=coverage,
            findings=made.findings,
            tables=tables.stored,
            rewritten=rewritten,
            corrections=candidates.corrections,
            gains=search.gains,
            kept_float=fallback,
            fidelity=comparison.fidelity,
            outlooks=comparison.outlooks,
            compared_on=comparison.samples,
            compared_on_data=comparison.on_data,
            samples=start.samples,
            float_bytes=model_bytes(floats.file),
            quantized_bytes=model_bytes(path),
            mixed=None if target is None or found is None else target.conclude(found, model, candidates, progress),
            speedup=speedup,
            timing=None if times is None else times.timing,
            slow=tuple(candidates.slow),
            search_ended=search.stopped,
            unsigned=tuple(sorted(candidates.scheme.unsigned_layers & plan.integer_nodes.keys())),
        )
        manifest = manifest_of(request, report, float_file=floats.file, quantized_file=path)
        check_reproduced(request.locked, manifest)
        write_manifest(manifest_path(path), manifest, home=output.parent)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A quantized graph with its plan and findings."""

    model: ir.Model
    plan: Plan
    findings: Findings
    tables: Tables


def _made(
    original: ir.Model,
    candidates: QuantizedCandidates,
    kept_float: Mapping[str, str],
    request: QuantizeRequest,
    allows_tables: Callable[[ir.Model, ir.Model], bool],
) -> _Made:
    """Returns the model quantized with the nodes of ``kept_float`` in float, embedding tables included."""
    model = candidates.model.clone()
    plan = candidates.plan(kept_float)
    findings = quantize_graph(
        model,
        plan,
        candidates.statistics,
        request.method,
        bias_correction=candidates.bias_correction,
        corrections=candidates.corrections,
    )
    if not (plan.integer_nodes or plan.dynamic.integer_nodes):
        model = original.clone()  # rewritings for integers are of no use then
    tables = Tables(model=model, stored=())
    backend = backend_named(request.scheme.backend)
    if backend.stores_tables:
        tables = with_tables(model, request.selection, allows_tables)
        plan = replace(plan, skipped=tables.without_stored(plan.skipped))
    backend.finish(tables.model, request.scheme)
    return _Made(model=tables.model, plan=plan, findings=findings, tables=tables)


def _plan(model: ir.Model, request: QuantizeRequest) -> Plan:
    """Plans; a model without quantizable nodes stays float, but --include and --exclude must leave some node."""
    chosen = bool(request.selection.include or request.selection.exclude)
    plan = build_plan(model, request.scheme, request.selection, may_be_empty=not chosen)
    if plan.dynamic.integer_nodes and not plan.integer_nodes:
        raise UsageError("--dynamic leaves no node for the static scheme", fix="use --scheme dynamic instead")
    return plan


def _check_request(request: QuantizeRequest) -> None:
    """Raises errors for options that cannot work, before anything is read."""
    if request.data is None and request.statistics is None:
        raise UsageError(
            "there is no calibration data",
            fix="pass --calib-data DATA, or --calib-stats FILE of an earlier `qtool calibrate`",
        )
    if request.goal is not None and request.data is None:
        raise UsageError(
            f"{request.goal.description} needs samples to evaluate on", fix="pass --calib-data DATA as well"
        )
    if request.time_budget_s is not None and request.goal is None and not request.searches.keeps_float:
        raise UsageError(
            "--time-budget has no effect without a search for layers to keep float",
            fix="add --min-sqnr, --min-agreement, --max-drop or --max-float, or drop it",
        )
    check_destination(request.destination, request.source, force=request.force)


def _gathered(
    model: ir.Model, plan: Plan, samples: CheckSamples | None, request: QuantizeRequest, progress: Progress
) -> Collected:
    if samples is None:
        raise AssertionError("a request has data or statistics")
    return gather(
        model,
        Watched.by(plan),
        samples.dataset,
        samples.data,
        progress,
        holdout=samples.holdout,
        threads=request.threads,
    )


def _checked_statistics(stored: StoredStatistics, model: ir.Model, path: Path | None) -> Collected:
    if stored.origin.get("model") != graph_fingerprint(model):
        raise InputError(
            f"the statistics in {path} are of another model",
            fix="calibrate this model again with `qtool calibrate`, with the same --target and --activations-symmetric",
        )
    return stored.collected


def _start(
    rewritten: Rewritten,
    stored: StoredStatistics | None,
    samples: CheckSamples | None,
    request: QuantizeRequest,
    progress: Progress,
) -> Start:
    """Returns the candidate factory of a form of the model, without the tensors found unfit by calibration."""
    model = rewritten.model
    plan = _plan(model, request)
    if stored is not None:
        collected = _checked_statistics(stored, model, request.statistics)
    else:
        collected = _gathered(model, plan, samples, request, progress)
    sources = {activation.source for activation in plan.activations.values()}
    needed = {name: seen for name, seen in collected.statistics.items() if name in sources}
    candidates = QuantizedCandidates(
        model=model.clone(),
        scheme=request.scheme,
        selection=request.selection,
        unfit=unfit_tensors(model.graph, needed),
        statistics=collected.statistics,
        method=request.method,
        bias_correction=False,
    )
    return Start(rewritten=rewritten, candidates=candidates, samples=collected.samples)
