"""The manifest of a quantization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.backends.registry import backend_named
from qtool.backends.runtimes import runtime_named
from qtool.json_values import json_value
from qtool.manifest import FileRecord, Manifest
from qtool.reporting.surroundings import versions
from qtool.workflows.diagnose.file_records import data_records, file_record, model_record
from qtool.workflows.quantize.lock import lock_record, locked_versions

if TYPE_CHECKING:
    from qtool.plan import Skipped
    from qtool.workflows.quantize.dynamic_request import DynamicRequest
    from qtool.workflows.quantize.request import QuantizeReport, QuantizeRequest
    from qtool.workflows.quantize.shared_request import SharedReport, SharedRequest
    from qtool.workflows.quantize.weight_only_request import WeightOnlyRequest


def manifest_of(
    request: QuantizeRequest, report: QuantizeReport, *, float_file: Path, quantized_file: Path
) -> Manifest:
    """Returns the manifest of one run; the two files are the staged models."""
    inputs = inputs_record(request)
    if request.statistics is not None:
        inputs["calib_stats"] = file_record(request.statistics, request.statistics)
    return Manifest(
        command="quantize",
        float_model=float_record(report, float_file, inputs),
        quantized_model=model_record(report.output, quantized_file),
        inputs=inputs,
        options=_options(request),
        versions={**locked_versions(request.source), **versions([runtime_named(report.coverage.runtime).package])},
        quantized=_quantized(report),
        figures={**figures_record(report), "samples": float(report.samples)},
        lock={
            **lock_record(request.arguments),
            "timing": None if report.timing is None else report.timing.as_json(),
            "search_ended": report.search_ended,
        },
    )


def _options(request: QuantizeRequest) -> dict[str, Any]:
    return {
        **options_record(request),
        "placement_only": request.scheme.placement_only,
        "judged_in": backend_named(request.scheme.backend).judged_in,
        "method": {"name": request.method_name, **_fields(request.method)},
        "dynamic": list(request.selection.dynamic),
        "searches": asdict(request.searches),
        "goal": None if request.goal is None else asdict(request.goal),
        "time_budget_s": request.time_budget_s,
        "smallest": request.timing.for_size,
    }


def _fields(method: Any) -> dict[str, Any]:
    return {name: getattr(method, name) for name in getattr(method, "__dataclass_fields__", ())}


def _quantized(report: QuantizeReport) -> dict[str, Any]:
    return {
        "activations": len(report.plan.activations),
        "weights": len(report.plan.weights) + len(report.plan.dynamic.stored),
        "dynamic_nodes": len(report.plan.dynamic.integer_nodes),
        "held_back_evidence": [json_value(asdict(evidence)) for evidence in report.evidence],
        **nodes_record(report, report.plan.skipped),
    }


def inputs_record(request: SharedRequest) -> dict[str, FileRecord]:
    """Returns the manifest's entries on the files that were read."""
    inputs = {"model": model_record(request.source.path, request.source.path)}
    if request.data is None:
        return inputs
    if request.data.tokenizer is not None:
        inputs["tokenizer"] = file_record(request.data.tokenizer, request.data.tokenizer)
    return inputs | data_records(request.data.sources)


def float_record(report: SharedReport, float_file: Path, inputs: Mapping[str, FileRecord]) -> FileRecord:
    """Returns the record of the float model in ``float_file``, which is one of ``inputs`` unless it was converted."""
    given = inputs["model"]
    if given.path == report.float_model == float_file:
        return given
    return model_record(report.float_model, float_file)


def options_record(request: DynamicRequest | QuantizeRequest | WeightOnlyRequest) -> dict[str, Any]:
    """Returns the manifest's entries on the options that all kinds of quantization have."""
    data = request.data
    return {
        "target": request.scheme.target,
        "scheme": request.scheme.description,
        "include": list(request.selection.include),
        "exclude": list(request.selection.exclude),
        "batch_size": None if data is None else data.batch_size,
        "limit": None if data is None else data.limit,
        "preprocess": None if data is None else data.preprocess,
        "threads": request.threads,
    }


def nodes_record(report: SharedReport, skipped: Sequence[Skipped]) -> dict[str, Any]:
    """Returns the manifest's entries on nodes, and on the embedding tables stored as integers."""
    return {
        "tables": [table.tensor for table in report.tables],
        "integer_nodes": report.coverage.integer,
        "quantizable_nodes": report.coverage.total,
        "operators": {row.operator: [row.integer, row.total] for row in report.coverage.by_operator()},
        "float_nodes": [asdict(skip) for skip in skipped],
    }


def figures_record(report: SharedReport) -> dict[str, float | None]:
    """Returns the manifest's measurements."""
    figures: dict[str, float | None] = {
        "float_bytes": float(report.float_bytes),
        "quantized_bytes": float(report.quantized_bytes),
    }
    for output in report.fidelity:
        sqnr = output.sqnr_db
        figures[f"sqnr_db:{output.name}"] = sqnr if sqnr is not None and math.isfinite(sqnr) else None
    return figures
