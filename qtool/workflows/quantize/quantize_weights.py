"""Weight-only post-training quantization: weights become integers in blocks, and activations stay float."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.atomic import staged
from qtool.backends.registry import backend_named
from qtool.calib.specs import Feed
from qtool.graph.specs import model_specs
from qtool.graph.unpacked_product import EXACT_LEVEL, INTEGER_LEVEL, UNPACKED_BITS
from qtool.manifest import FileRecord, Manifest, manifest_path, write_manifest
from qtool.metrics.size import model_bytes
from qtool.plan import WeightOnlyPlan
from qtool.planning import build_weight_only_plan
from qtool.private_folder import private_folder
from qtool.progress import SILENT, Progress
from qtool.qdq.insert_blocks import BLOCK_OPSET, insert_blocks
from qtool.runtime.steady_draws import DRAWN_ALIKE, draws
from qtool.schemes import WeightOnlyScheme
from qtool.search.blocks.rounding import matrix_of, rounding_bytes
from qtool.search.frugal_execution import FrugalExecution, unpacks
from qtool.weights.blocks.choices import BlockMethod, WeightFormat
from qtool.workflows.convert.opsets import to_opset
from qtool.workflows.diagnose.file_records import model_record
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.checked_result import write_and_check
from qtool.workflows.quantize.decoder_output import bring_decoder_files
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.lock import check_reproduced, lock_record, locked_versions
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.quantize.prepared_model import single_sample
from qtool.workflows.quantize.quantize_files import check_destination, float_model
from qtool.workflows.quantize.quantize_record import (
    figures_record,
    float_record,
    inputs_record,
    nodes_record,
    options_record,
)
from qtool.workflows.quantize.weight_only_request import WeightOnlyReport, WeightOnlyRequest
from qtool.workflows.tune.activation_memory import ActivationMemory
from qtool.workflows.tune.weight_only.choice import WeightOnlyChoice
from qtool.workflows.tune.weight_only.evaluation import WeightOnlyEvaluation
from qtool.workflows.tune.weight_only.search import choose_bits, choose_weights, without_data


def plan_weights(request: WeightOnlyRequest, progress: Progress) -> WeightOnlyPlan:
    """Returns the plan of ``quantize_weights``, and writes nothing.

    Raises:
        QtoolError: the model cannot be used or quantized, or a pattern matches nothing.
        FormatError: the model file cannot be read.
    """
    dataset = None if request.data is None else request.data.open()
    model = _prepared(request.source.load(progress, dataset=dataset), request)
    return build_weight_only_plan(model, request.scheme, request.selection)


def quantize_weights(request: WeightOnlyRequest, progress: Progress = SILENT) -> WeightOnlyReport:
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
    common.NameFixPass()(original)
    if draws(original):
        progress.note(DRAWN_ALIKE)
    model = _prepared(original.clone(), request)
    plan = build_weight_only_plan(model, request.scheme, request.selection)
    samples, sample = None, None
    if dataset is not None and request.data is not None:
        sample = single_sample(original, dataset, request.data)
        memory = ActivationMemory.of(model, sample)
        batches = request.data.batches(dataset, *model_specs(original))
        progress.note(f"rounding takes about {rounding_bytes(model, plan) / 1e9:.1f} GB of memory")
        samples = CheckSamples(dataset=dataset, data=request.data, holdout=HoldoutSplit.of(batches), memory=memory)
    with staged(output) as path, private_folder() as folder, ThreadPoolExecutor(max_workers=1) as beside:
        inputs = beside.submit(inputs_record, request)  # hashes gigabytes, while their weights are rounded
        floats = float_model(original, request.source, output, path, force=request.force)
        found = _chosen(request, original, model, plan, samples, sample, model_bytes(floats.file), folder, progress)
        plan, model = found.plan, model if found.model is None else found.model
        form, unpacked = request.scheme.form, unpacks(original)
        insert_blocks(model, plan, found.weights, form=form, levels=found.levels, unpacks=unpacked)
        backend_named(request.scheme.backend).finish(model, request.scheme)
        hashed: list[Future[FileRecord]] = []
        checked = write_and_check(
            model,
            original,
            plan.skipped,
            path,
            samples,
            scheme=request.scheme,
            threads=request.threads,
            progress=progress,
            execution=FrugalExecution(),
            written=lambda: hashed.append(beside.submit(model_record, output, path)),
        )
        report = WeightOnlyReport(
            output=output,
            manifest=manifest_path(output),
            float_model=floats.path,
            plan=plan,
            method=found.method,
            integer_layers=found.integer_layers,
            attempts=found.attempts,
            noise=found.noise,
            coverage=checked.coverage,
            tables=(),
            fidelity=checked.comparison.fidelity,
            outlooks=checked.comparison.outlooks,
            compared_on=checked.comparison.samples,
            compared_on_data=checked.comparison.on_data,
            float_bytes=model_bytes(floats.file),
            quantized_bytes=model_bytes(path),
        )
        bring_decoder_files(request.source.path, path, output)
        manifest = _manifest(request, report, inputs.result(), hashed[0].result(), float_file=floats.file)
        check_reproduced(request.locked, manifest)
        write_manifest(manifest_path(path), manifest, home=output.parent)
    return report


def _prepared(original: ir.Model, request: WeightOnlyRequest) -> ir.Model:
    model = prepare(original, integers_between_layers=False)
    if request.scheme.form is WeightFormat.QDQ and model.opset_imports.get("", 0) < BLOCK_OPSET:
        return to_opset(model, BLOCK_OPSET)
    return model


def _chosen(
    request: WeightOnlyRequest,
    original: ir.Model,
    model: ir.Model,
    plan: WeightOnlyPlan,
    samples: CheckSamples | None,
    sample: Feed | None,
    float_bytes: int,
    folder: Path,
    progress: Progress,
) -> WeightOnlyChoice:
    """Returns the weights; a repeated run takes method and levels of the first, whose times were others."""
    recorded = None if request.locked is None else request.locked.lock.get("weights")
    method = request.method if recorded is None else BlockMethod(recorded["method"])
    level = request.level if recorded is None else int(recorded["level"])
    if samples is None:
        return without_data(
            model, plan, method, _usual_level(request.scheme, original) if level is None else level, progress
        )
    evaluation = WeightOnlyEvaluation(original, model, request.scheme, samples, folder, threads=request.threads)
    timed_on = sample if request.scheme.form is WeightFormat.NBITS else None
    if request.goal is None:
        found = choose_weights(evaluation, plan, progress, method=method, level=level, timed_on=timed_on)
    else:
        stored = sum(matrix_of(model, name).nbytes for name in plan.weights)
        found = choose_bits(
            evaluation,
            plan,
            progress,
            goal=request.goal,
            other_bytes=float_bytes - stored,
            level=level,
            timed_on=timed_on,
        )
    if recorded is None or "integer_layers" not in recorded:
        return found
    return replace(found, integer_layers=frozenset(recorded["integer_layers"]))


def _usual_level(scheme: WeightOnlyScheme, original: ir.Model) -> int:
    """Returns the accuracy level of products that nothing is measured about.

    That is the exact one unless its kernel unpacks the weights in every run, and takes several times as long as a float
    product.
    """
    is_slow = scheme.form is WeightFormat.NBITS and scheme.grid.bits == UNPACKED_BITS and not unpacks(original)
    return INTEGER_LEVEL if is_slow else EXACT_LEVEL


def _manifest(
    request: WeightOnlyRequest,
    report: WeightOnlyReport,
    inputs: Mapping[str, FileRecord],
    quantized: FileRecord,
    *,
    float_file: Path,
) -> Manifest:
    """Returns the manifest of one run; the file is the staged float model."""
    return Manifest(
        command="quantize",
        float_model=float_record(report, float_file, inputs),
        quantized_model=quantized,
        inputs=inputs,
        options=options_record(request),
        versions=locked_versions(request.source),
        quantized={"weights": len(report.plan.weights), **nodes_record(report, report.plan.skipped)},
        figures=figures_record(report),
        lock={
            **lock_record(request.arguments),
            "weights": _lock_of(report),
        },
    )


def _lock_of(report: WeightOnlyReport) -> dict[str, Any]:
    if report.level is not None:
        return {"method": report.method.value, "level": report.level}
    layers = [name for name in report.plan.layers if name in report.integer_layers]
    return {"method": report.method.value, "level": EXACT_LEVEL, "integer_layers": layers}
