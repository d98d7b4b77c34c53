"""Calibrates, searches for corrections and for the layers that stay float, and quantizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qtool.backends.execution_choice import execution_for
from qtool.backends.registry import backend_named
from qtool.calib.collect import Collected
from qtool.calib.statistics_file import StoredStatistics
from qtool.errors import InputError, UsageError
from qtool.fingerprint import graph_fingerprint
from qtool.metrics.latency import Interval
from qtool.plan import Plan
from qtool.planning import build_plan
from qtool.progress import Progress
from qtool.quantizer import Findings, quantize_graph
from qtool.workflows.quantize.calibrate import Watched, gather
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.prepared_model import PreparedModel, calibrated_candidates
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.quantize.request import QuantizeRequest
from qtool.workflows.tune.accuracy_target import AccuracyTarget, FloatLayers
from qtool.workflows.tune.embedding_tables import Tables, with_tables
from qtool.workflows.tune.float_fallback_search import KeptFloat
from qtool.workflows.tune.quantization_search import QuantizationSearch, Start
from qtool.workflows.tune.rewriting import Rewritten
from qtool.workflows.tune.time_plan import TimePlan, is_slower


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedGraph:
    """A quantized graph with its plan and findings."""

    model: ir.Model
    plan: Plan
    findings: Findings
    tables: Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNodes:
    """The nodes that stay float for accuracy, and the search that chose them: for a goal, or for its worth."""

    nodes: Mapping[str, str]
    target: AccuracyTarget | None = None
    found: FloatLayers | None = None
    fallback: KeptFloat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundQuantization:
    """The quantized graph that a search ended with, and how it got there."""

    search: QuantizationSearch
    start: Start
    candidates: QuantizedCandidates
    times: TimePlan | None
    kept: KeptNodes
    quantized: QuantizedGraph
    speedup: Interval | None


def find_quantization(
    prepared: PreparedModel, stored: StoredStatistics | None, request: QuantizeRequest, progress: Progress
) -> FoundQuantization:
    """Searches for corrections and for the layers that stay float, and quantizes."""
    samples = check_samples(prepared, stored)
    search = QuantizationSearch(
        prepared.original,
        request.scheme,
        request.selection,
        request.searches,
        samples if stored is None else None,
        progress,
        timed_on=None if prepared.calibration is None else prepared.calibration.sample,
        threads=request.threads,
    )
    starts = [
        _start(rewritten, prepared, stored, samples, request, progress)
        for rewritten in search.rewritten(prepared.model)
    ]
    times = search.timed(starts[0].candidates, request.timing) if request.asks_for_times else None
    if times is not None:
        slow = times.slow_nodes()
        starts = [replace(start, candidates=replace(start.candidates, slow=slow)) for start in starts]
    start = search.corrected(starts)
    candidates, kept = _kept_float(prepared, search, start, times, samples, request, progress)
    candidates = search.fitted(candidates, kept.nodes)
    candidates, quantized, speedup = _in_time(prepared, search, candidates, times, kept, request)
    return FoundQuantization(
        search=search,
        start=start,
        candidates=candidates,
        times=times,
        kept=kept,
        quantized=quantized,
        speedup=speedup,
    )


def _kept_float(
    prepared: PreparedModel,
    search: QuantizationSearch,
    start: Start,
    times: TimePlan | None,
    samples: CheckSamples | None,
    request: QuantizeRequest,
    progress: Progress,
) -> tuple[QuantizedCandidates, KeptNodes]:
    """Chooses the layers that stay float for accuracy; some layers of the candidates may become dynamic."""
    candidates = search.unsigned(start.candidates, times)
    if request.goal is None or samples is None or times is None:
        candidates, fallback = search.float_fallback(candidates, times, budget_s=request.time_budget_s)
        nodes = {} if fallback is None else fallback.choice.kept_float()
        return candidates, KeptNodes(nodes=nodes, fallback=fallback)
    execution = execution_for(request.scheme)
    target = AccuracyTarget(prepared.original, request.goal, samples, execution=execution, threads=request.threads)
    found = target.search(candidates.model, candidates, times.cost(), progress, budget_s=request.time_budget_s)
    return candidates, KeptNodes(nodes=found.kept_float, target=target, found=found)


def _in_time(
    prepared: PreparedModel,
    search: QuantizationSearch,
    candidates: QuantizedCandidates,
    times: TimePlan | None,
    kept: KeptNodes,
    request: QuantizeRequest,
) -> tuple[QuantizedCandidates, QuantizedGraph, Interval | None]:
    """Quantizes, with more layers in float until the result is not slower than float."""
    allows_tables = (kept.target or search).allows_tables
    quantized = _quantized(prepared.original, candidates, kept.nodes, request, allows_tables)
    speedup = search.speedup(quantized.model)
    # A choice made layer by layer can still be slower than float.
    while times is not None and speedup is not None and is_slower(speedup) and times.keep_more():
        candidates = replace(candidates, slow=times.slow_nodes())
        quantized = _quantized(prepared.original, candidates, kept.nodes, request, allows_tables)
        speedup = search.speedup(quantized.model)
    return candidates, quantized, speedup


def _quantized(
    original: ir.Model,
    candidates: QuantizedCandidates,
    kept_float: Mapping[str, str],
    request: QuantizeRequest,
    allows_tables: Callable[[ir.Model, ir.Model], bool],
) -> QuantizedGraph:
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
    return QuantizedGraph(model=tables.model, plan=plan, findings=findings, tables=tables)


def may_be_empty(request: QuantizeRequest) -> bool:
    """Tells whether a model without quantizable nodes stays float; --include and --exclude must leave some node."""
    return not (request.selection.include or request.selection.exclude)


def check_plan(plan: Plan) -> None:
    """Refuses a plan for the static scheme whose layers are all dynamic.

    Raises:
        UsageError: --dynamic leaves nothing else.
    """
    if plan.dynamic.integer_nodes and not plan.integer_nodes:
        raise UsageError("--dynamic leaves no node for the static scheme", fix="use --scheme dynamic instead")


def check_samples(prepared: PreparedModel, stored: StoredStatistics | None) -> CheckSamples | None:
    """Returns the samples to compare on, some of which calibration leaves out."""
    calibration = prepared.calibration
    if calibration is None:
        return None
    # Stored statistics include all of the data: nothing can be held out from them.
    batches = calibration.data.batches(calibration.dataset, *prepared.interface) if stored is None else 0
    return CheckSamples(
        dataset=calibration.dataset,
        data=calibration.data,
        holdout=HoldoutSplit.of(batches),
        memory=calibration.memory,
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
    prepared: PreparedModel,
    stored: StoredStatistics | None,
    samples: CheckSamples | None,
    request: QuantizeRequest,
    progress: Progress,
) -> Start:
    """Returns the candidates of a form of the model, without the tensors found unfit by calibration."""
    model, plan = rewritten.model, prepared.plan
    if model is not prepared.model:
        plan = build_plan(model, request.scheme, request.selection, may_be_empty=may_be_empty(request))
        check_plan(plan)
    if stored is not None:
        collected = _checked_statistics(stored, model, request.statistics)
    elif samples is not None:
        collected = gather(
            model,
            Watched.by(plan),
            samples.dataset,
            samples.data,
            progress,
            holdout=samples.holdout,
            threads=request.threads,
        )
    else:
        raise AssertionError("a request has data or statistics")
    candidates = calibrated_candidates(
        model.clone(),
        plan,
        collected.statistics,
        scheme=request.scheme,
        selection=request.selection,
        method=request.method,
        bias_correction=False,
    )
    return Start(rewritten=rewritten, candidates=candidates, samples=collected.samples)
