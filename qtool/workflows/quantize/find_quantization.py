"""Searches for a quantization, improves it where the effort is the best, and quantizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from qtool.backends.registry import backend_named
from qtool.calib.statistics_file import StoredStatistics
from qtool.cluster.work import Workers
from qtool.metrics.latency import Interval
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.quantizer import Findings, quantize_graph
from qtool.search.held_back_evidence import Evidence
from qtool.workflows.quantize.prepared_model import PreparedModel
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.quantize.request import QuantizeRequest
from qtool.workflows.quantize.static_search import SearchResult, StaticSearch
from qtool.workflows.tune.embedding_tables import Tables, with_tables
from qtool.workflows.tune.further_search import improved
from qtool.workflows.tune.speed import is_slower


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedGraph:
    """A quantized graph with its plan and findings."""

    model: ir.Model
    plan: Plan
    findings: Findings
    tables: Tables

    @property
    def is_float(self) -> bool:
        """Whether nothing in it is quantized, so that it is the float graph itself."""
        return not (self.plan.integer_nodes or self.plan.dynamic.integer_nodes or self.tables.stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundQuantization:
    """The quantized graph that a search ended with, and how it got there.

    Attributes:
        result: of the search.
        evidence: on every change of it that was tried, on samples held back.
        stopped: why the search ended early, in words; None when it did not.
        quantized: the graph.
        speedup: how many times faster than float it is; None where nothing is timed, or nothing is quantized.
    """

    result: SearchResult
    evidence: tuple[Evidence, ...]
    stopped: str | None
    quantized: QuantizedGraph
    speedup: Interval | None


def find_quantization(
    prepared: PreparedModel,
    stored: StoredStatistics | None,
    request: QuantizeRequest,
    progress: Progress,
    workers: Workers,
) -> FoundQuantization:
    """Searches for corrections and for the layers that stay float, and quantizes; ``workers`` do tasks of it."""
    searching = StaticSearch(prepared, stored, request, progress, workers)
    result = searching.run(request.searches)
    evidence: tuple[Evidence, ...] = ()
    stopped = result.search.stopped
    if request.searches.further is not None:
        found = improved(result, request.searches.further, searching, prepared, request, progress)
        result, evidence = found.result, found.evidence
        stopped = stopped or found.stopped
    candidates, quantized, speedup = _in_time(prepared, result, request)
    return FoundQuantization(
        result=replace(result, candidates=candidates),
        evidence=evidence,
        stopped=stopped,
        quantized=quantized,
        speedup=speedup,
    )


def _in_time(
    prepared: PreparedModel, result: SearchResult, request: QuantizeRequest
) -> tuple[QuantizedCandidates, QuantizedGraph, Interval | None]:
    """Quantizes, with more layers in float until the result is not slower than float."""
    search, candidates, times, kept = result.search, result.candidates, result.times, result.kept
    allows_tables = (kept.target or search).allows_tables
    quantized = _quantized(prepared.original, candidates, kept.nodes, request, allows_tables)
    speedup = None if quantized.is_float else search.speedup(quantized.model)
    # A choice made layer by layer can still be slower than float.
    while times is not None and speedup is not None and is_slower(speedup) and times.keep_more():
        candidates = replace(candidates, slow=times.slow_nodes())
        quantized = _quantized(prepared.original, candidates, kept.nodes, request, allows_tables)
        speedup = None if quantized.is_float else search.speedup(quantized.model)
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
