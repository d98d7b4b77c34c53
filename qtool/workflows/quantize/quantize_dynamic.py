"""Dynamic post-training quantization: ranges of activations are computed at run time, without calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qtool.atomic import staged
from qtool.backends.registry import backend_named
from qtool.dynamic_quantizer import quantize_dynamically
from qtool.manifest import Manifest, manifest_path, write_manifest
from qtool.metrics.size import model_bytes
from qtool.plan import DynamicPlan
from qtool.planning import build_dynamic_plan
from qtool.progress import SILENT, Progress
from qtool.runtime.steady_draws import DRAWN_ALIKE, draws
from qtool.workflows.diagnose.file_records import model_record
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.checked_result import write_and_check
from qtool.workflows.quantize.decoder_output import bring_decoder_files
from qtool.workflows.quantize.dynamic_request import DynamicReport, DynamicRequest
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.lock import check_reproduced, lock_record, locked_versions
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.quantize.quantize_files import check_destination, float_model
from qtool.workflows.quantize.quantize_record import figures_record, inputs_record, nodes_record, options_record
from qtool.workflows.tune.embedding_tables import with_tables


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
    output = request.destination
    check_destination(output, request.source, force=request.force)
    dataset = None if request.data is None else request.data.open()
    original = request.source.load(progress, dataset=dataset)
    if draws(original):
        progress.note(DRAWN_ALIKE)
    samples = None
    if dataset is not None and request.data is not None:
        samples = CheckSamples(dataset=dataset, data=request.data, holdout=HoldoutSplit())
    with staged(output) as path:
        floats = float_model(original, request.source, output, path, force=request.force)
        model = prepare(original.clone(), integers_between_layers=False)
        plan = build_dynamic_plan(model, request.scheme, request.selection)
        weights = quantize_dynamically(model, plan)
        tables = with_tables(model, request.selection)
        model, plan = tables.model, replace(plan, skipped=tables.without_stored(plan.skipped))
        backend_named(request.scheme.backend).finish(model, request.scheme)
        checked = write_and_check(
            model,
            original,
            plan.skipped,
            path,
            samples,
            scheme=request.scheme,
            threads=request.threads,
            progress=progress,
        )
        report = DynamicReport(
            output=output,
            manifest=manifest_path(output),
            float_model=floats.path,
            plan=plan,
            coverage=checked.coverage,
            dead_channels={name: weight.dead_channels for name, weight in weights.items() if weight.dead_channels},
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


def _manifest(request: DynamicRequest, report: DynamicReport, *, float_file: Path, quantized_file: Path) -> Manifest:
    """Returns the manifest of one run; the two files are the staged models."""
    return Manifest(
        command="quantize",
        float_model=model_record(report.float_model, float_file),
        quantized_model=model_record(report.output, quantized_file),
        inputs=inputs_record(request),
        options=options_record(request),
        versions=locked_versions(request.source),
        quantized={
            "weights": len(report.plan.stored),
            "dynamic_nodes": len(report.plan.integer_nodes),
            **nodes_record(report, report.plan.skipped),
        },
        figures=figures_record(report),
        lock=lock_record(request.arguments),
    )
