"""Static post-training quantization of a model, with a check of the result before it is written."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from qtool.atomic import staged
from qtool.backends.registry import backend_named
from qtool.calib.statistics_file import StoredStatistics, read_statistics
from qtool.cluster.work import IN_THIS_PROCESS, Workers
from qtool.errors import UsageError
from qtool.graph.collection_pause import only_new_garbage
from qtool.manifest import manifest_path, write_manifest
from qtool.metrics.size import model_bytes
from qtool.plan import Plan
from qtool.planning import build_plan
from qtool.progress import SILENT, Progress
from qtool.runtime.steady_draws import DRAWN_ALIKE, draws
from qtool.workflows.quantize.checked_result import CheckedResult, write_and_check
from qtool.workflows.quantize.decoder_output import bring_decoder_files
from qtool.workflows.quantize.find_quantization import FoundQuantization, find_quantization
from qtool.workflows.quantize.lock import check_reproduced
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.quantize.prepared_model import PreparedModel, load_prepared
from qtool.workflows.quantize.quantize_files import FloatModel, check_destination, float_model
from qtool.workflows.quantize.quantize_record import manifest_of
from qtool.workflows.quantize.request import QuantizeReport, QuantizeRequest
from qtool.workflows.quantize.static_search import check_plan, check_samples, may_be_empty


def plan_quantization(request: QuantizeRequest, progress: Progress) -> Plan:
    """Returns the plan of ``quantize``, without data, and writes nothing.

    Raises:
        QtoolError: the model cannot be used or quantized, or a pattern matches nothing.
        FormatError: the model file cannot be read.
    """
    dataset = None if request.data is None else request.data.open()
    model = request.source.load(progress, dataset=dataset)
    model = prepare(model, integers_between_layers=request.scheme.integers_between_layers)
    plan = build_plan(model, request.scheme, request.selection, may_be_empty=may_be_empty(request))
    check_plan(plan)
    return plan


def quantize(
    request: QuantizeRequest, progress: Progress = SILENT, workers: Workers = IN_THIS_PROCESS
) -> QuantizeReport:
    """Quantizes, runs the result in onnxruntime, compares it with the float model, and only then writes it.

    ``workers`` calibrate, and measure tensors and layers one at a time; the result is the same whoever they are.

    Raises:
        UsageError: there is neither data nor statistics.
        QtoolError: the model, the statistics or the output cannot be used; see the subclasses.
        FormatError: the model file cannot be read.
        CalibError: the data does not fit the model.
    """
    _check_request(request)
    stored = None if request.statistics is None else read_statistics(request.statistics)
    with ExitStack() as pause:
        prepared = load_prepared(
            request.source,
            request.data,
            request.scheme,
            request.selection,
            progress,
            may_be_empty=may_be_empty(request),
            pause=pause,
        )
        check_plan(prepared.plan)
        request = _for_its_length(request, prepared, progress)
        if request.searches.times_layers:
            # Many candidates come and go.
            pause.close()
            pause.enter_context(only_new_garbage())
        return _quantized(prepared, stored, request, progress, workers)


def _quantized(
    prepared: PreparedModel,
    stored: StoredStatistics | None,
    request: QuantizeRequest,
    progress: Progress,
    workers: Workers,
) -> QuantizeReport:
    """Quantizes a prepared model, and writes and reports it; see ``quantize``."""
    if draws(prepared.original):
        progress.note(DRAWN_ALIKE)
    output = request.destination
    with staged(output) as path:
        floats = float_model(prepared.original, request.source, output, path, force=request.force)
        found = find_quantization(prepared, stored, request, progress, workers)
        quantized = found.quantized
        checked = write_and_check(
            quantized.model,
            prepared.original,
            quantized.plan.skipped,
            path,
            check_samples(prepared, stored),
            scheme=request.scheme,
            threads=request.threads,
            progress=progress,
            is_float=quantized.is_float,
        )
        if found.stopped is not None:
            progress.note(f"{found.stopped}: continuing with the best so far")
        report = _report(found, checked, floats, path, request, progress)
        manifest = manifest_of(request, report, float_file=floats.file, quantized_file=path)
        check_reproduced(request.locked, manifest)
        bring_decoder_files(request.source.path, path, output)
        write_manifest(manifest_path(path), manifest, home=output.parent)
    return report


def _for_its_length(request: QuantizeRequest, prepared: PreparedModel, progress: Progress) -> QuantizeRequest:
    """Returns the request without what its effort leaves out on graphs of so many nodes."""
    nodes = len(prepared.model.graph)
    searches = request.searches.for_nodes(nodes)
    if searches != request.searches:
        progress.note(
            f"the graph has {nodes:,} nodes: --effort fast searches nothing there, and predicts the times of layers"
        )
    return replace(request, searches=searches)


def _report(
    found: FoundQuantization,
    checked: CheckedResult,
    floats: FloatModel,
    path: Path,
    request: QuantizeRequest,
    progress: Progress,
) -> QuantizeReport:
    result, quantized = found.result, found.quantized
    candidates, kept = result.candidates, result.kept
    mixed = None
    if kept.target is not None and kept.found is not None:
        mixed = kept.target.conclude(kept.found, quantized.model, candidates, progress)
    return QuantizeReport(
        output=request.destination,
        manifest=manifest_path(request.destination),
        float_model=floats.path,
        plan=quantized.plan,
        coverage=checked.coverage,
        findings=quantized.findings,
        tables=quantized.tables.stored,
        rewritten=result.start.rewritten,
        corrections=candidates.corrections,
        gains=result.search.gains,
        evidence=found.evidence,
        kept_float=kept.fallback,
        fidelity=checked.comparison.fidelity,
        outlooks=checked.comparison.outlooks,
        compared_on=checked.comparison.samples,
        compared_on_data=checked.comparison.on_data,
        samples=result.start.samples,
        float_bytes=model_bytes(floats.file),
        quantized_bytes=model_bytes(path),
        mixed=mixed,
        speedup=found.speedup,
        timing=None if result.times is None else result.times.timing,
        slow=tuple(candidates.slow),
        search_ended=found.stopped,
        judged_in=backend_named(request.scheme.backend).judged_in,
        unsigned=tuple(sorted(candidates.scheme.unsigned_layers & quantized.plan.integer_nodes.keys())),
    )


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
