"""Lays out what ``qtool quantize`` planned or did, for people and for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from qtool.backends.coverage import Coverage
from qtool.calib.granularity import PerChannel
from qtool.cli.console import Console
from qtool.cli.options.goal import mixed_as_json
from qtool.cli.options.search import search_as_json, search_remarks, show_search
from qtool.cli.output.outlook import outlook_as_json, show_outlooks
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.outlook import Outlook
from qtool.plan import Plan, Skipped, WeightPlan
from qtool.qdq.store_tables import StoredTable
from qtool.schemes import AnyScheme, Scheme
from qtool.workflows.quantize.request import QuantizeReport, QuantizeRequest
from qtool.workflows.quantize.shared_request import SharedReport

# Below this a classifier usually changes its mind often enough to be noticed.
_POOR_SQNR_DB = 10.0
# Outputs this small are silence, and their noise is too.
_NEGLIGIBLE_ERROR = 1e-3
_NAMES_SHOWN = 3
# A graph of thousands of nodes may keep all of them in float.
_NODES_SHOWN = 50


def show_plan(console: Console, plan: Plan, scheme: Scheme) -> None:
    """Prints every tensor with its scheme, and every node that stays float with its reason."""
    rows = [(row["tensor"], row["kind"], row["type"], row["granularity"], row["note"]) for row in _tensors(plan)]
    caption = f"{scheme.description}, for {scheme.standing}"
    console.table("Tensors to quantize", ("tensor", "kind", "type", "granularity", "note"), rows, caption)
    show_skipped(console, plan.skipped)
    counts = Counter([*plan.integer_nodes.values(), *plan.dynamic.integer_nodes.values()])
    if not counts:
        console.warn("nothing in the model can be quantized")
        return
    console.say("to run on integers: " + ", ".join(f"{count} {operator}" for operator, count in counts.items()))


def plan_as_json(plan: Plan, scheme: Scheme) -> dict[str, object]:
    """Returns the plan as values for JSON."""
    return {
        "schema": "qtool.plan/1",
        "target": scheme.target,
        "placement_only": scheme.placement_only,
        "scheme": scheme.description,
        "tensors": _tensors(plan),
        "integer_nodes": [
            {"node": node, "operator": operator}
            for node, operator in (*plan.integer_nodes.items(), *plan.dynamic.integer_nodes.items())
        ],
        "dynamic_nodes": list(plan.dynamic.integer_nodes),
        "float_nodes": [asdict(skip) for skip in plan.skipped],
    }


def show_report(console: Console, report: QuantizeReport, request: QuantizeRequest) -> None:
    """Prints what was done, how close the result is, and what to look at."""
    show_coverage(console, report.coverage)
    from qtool.backends.registry import backend_named

    if not backend_named(request.scheme.backend).has_kernels_here:
        console.say(f"this is the coverage on this CPU; {request.scheme.machine} selects its own kernels")
    if request.scheme.placement_only:
        console.say(
            f"not run on {request.scheme.machine}: accuracy is that of Q and DQ node by node, and "
            f"`qtool verify --target {request.scheme.target}` checks the graph by its rules"
        )
    show_skipped(console, report.plan.skipped, counted=True)
    if report.compared_on_data:
        caption = (
            f"{request.scheme.description}; {request.method_name} of {report.samples} samples; "
            f"compared on {report.compared_on}"
        )
        show_fidelity(console, report.fidelity, caption, advice="try another --method, or --exclude some nodes")
        show_outlooks(console, report.outlooks)
    else:
        console.say("runs on random inputs; give --calib-data as well to compare it with the float model on real ones")
    for remark in _remarks(report):
        console.say(remark)
    show_search(console, report)
    if not (report.plan.integer_nodes or report.plan.dynamic.integer_nodes):
        console.warn(_why_all_float(report, request))
    show_written(console, report)


def _why_all_float(report: QuantizeReport, request: QuantizeRequest) -> str:
    if report.slow:
        return (
            f"integers save no time in this model on {request.scheme.machine}, so all of it stays float; "
            "--smallest quantizes it all the same, --target says for which processor"
        )
    return "nothing in the model can be quantized: the result computes in float, no faster than before"


def show_skipped(console: Console, skipped: Sequence[Skipped], *, counted: bool = False) -> None:
    """Prints the nodes that stay float, each with its reason; or only how many there are for each."""
    if not skipped:
        return
    if counted:
        # What follows the colon is about the one layer.
        counts = Counter(
            (skip.operator, skip.reason.partition(": ")[0] if skip.reason.startswith("kept float") else skip.reason)
            for skip in skipped
        )
        rows = [(operator, count, reason) for (operator, reason), count in counts.most_common()]
        console.table("Stays float", ("operator", "nodes", "reason"), rows)
    else:
        lines = [(skip.node, skip.operator, skip.reason) for skip in skipped]
        console.table("Nodes that stay float", ("node", "operator", "reason"), lines)


def show_written(console: Console, report: SharedReport) -> None:
    """Prints what was written, and how large it is."""
    ratio = report.quantized_bytes / report.float_bytes
    console.say(
        f"wrote {report.output}: {report.quantized_bytes:,} bytes, {ratio:.0%} of {report.float_model.name}; "
        f"and {report.manifest.name}"
    )


def show_fidelity(console: Console, outputs: Sequence[OutputFidelity], caption: str, *, advice: str) -> None:
    """Prints how close each output stays to the float model's, and ``advice`` where one is far from it."""
    console.table(
        "Compared with the float model",
        ("output", "SQNR in dB", "cosine", "largest error", "same class"),
        [
            (
                output.name,
                _decimal(output.sqnr_db, 2),
                _decimal(output.cosine, 5),
                "" if output.max_abs_error is None else f"{output.max_abs_error:.3g}",
                "" if output.top1_agreement is None else f"{output.top1_agreement:.1%}",
            )
            for output in outputs
        ],
        caption,
    )
    for output in outputs:
        if output.part is not None:
            console.say(f"'{output.name}' joins values of different magnitude: its SQNR is that of {output.part}")
        sqnr, error = output.sqnr_db, output.max_abs_error
        if sqnr is not None and sqnr < _POOR_SQNR_DB and error is not None and error > _NEGLIGIBLE_ERROR:
            console.warn(f"'{output.name}' is far from the float model: {advice}")


def report_as_json(report: QuantizeReport, request: QuantizeRequest) -> dict[str, object]:
    """Returns the report for JSON."""
    return {
        **shared_as_json(report, request.scheme),
        "placement_only": request.scheme.placement_only,
        "method": request.method_name,
        **search_as_json(report),
        "samples": report.samples,
        "judged_in": report.judged_in,
        "constant_tensors": list(report.findings.constant),
        "dead_channels": {name: list(channels) for name, channels in report.findings.dead_channels.items()},
        "widened_channels": {name: list(channels) for name, channels in report.findings.widened_channels.items()},
        "reduced_channels": {name: list(channels) for name, channels in report.findings.reduced_channels.items()},
        "corrected_biases": dict(report.findings.corrected),
        "dynamic_nodes": list(report.plan.dynamic.integer_nodes),
        "mixed_precision": mixed_as_json(report.mixed),
        "float_nodes": [asdict(skip) for skip in report.plan.skipped],
    }


def shared_as_json(report: SharedReport, scheme: AnyScheme) -> dict[str, object]:
    """Returns what reports of static and of dynamic quantization share, for JSON."""
    return {
        "schema": "qtool.quantize/1",
        "output": str(report.output),
        "manifest": str(report.manifest),
        "float_model": str(report.float_model),
        "target": scheme.target,
        "scheme": scheme.description,
        "compared_on": report.compared_on,
        "float_bytes": report.float_bytes,
        "quantized_bytes": report.quantized_bytes,
        "coverage": coverage_as_json(report.coverage),
        "outputs": _fidelity_as_json(report.fidelity, report.outlooks),
        "tables": [asdict(table) for table in report.tables],
    }


def _fidelity_as_json(outputs: Sequence[OutputFidelity], outlooks: Mapping[str, Outlook]) -> list[dict[str, object]]:
    return [{**asdict(output), "outlook": outlook_as_json(outlooks.get(output.name))} for output in outputs]


def show_coverage(console: Console, coverage: Coverage) -> None:
    """Prints how many nodes of each operator run on integers, and why the others do not."""
    from qtool.backends.runtimes import runtime_named

    console.table(
        f"Runs on integers in {runtime_named(coverage.runtime).title}",
        ("operator", "on integers", "of"),
        [(row.operator, row.integer, row.total) for row in coverage.by_operator()],
        f"{coverage.integer} of {coverage.total} quantizable nodes ({coverage.share:.1%})",
    )
    shown, more = coverage.misses[:_NODES_SHOWN], len(coverage.misses) - _NODES_SHOWN
    if shown:
        console.table(
            "Quantizable, but float",
            ("node", "operator", "reason", "fix"),
            [(node.node, node.operator, node.reason or "", node.fix or "") for node in shown],
            f"and {more} more; --json lists all" if more > 0 else None,
        )


def coverage_as_json(coverage: Coverage) -> dict[str, object]:
    """Returns the coverage as values for JSON."""
    return {
        "runtime": coverage.runtime,
        "integer_nodes": coverage.integer,
        "quantizable_nodes": coverage.total,
        "share": coverage.share,
        "operators": [asdict(row) for row in coverage.by_operator()],
        "misses": [
            {"node": node.node, "operator": node.operator, "reason": node.reason, "fix": node.fix}
            for node in coverage.misses
        ],
    }


def _tensors(plan: Plan) -> list[dict[str, str]]:
    rows = [
        {
            "tensor": activation.tensor,
            "kind": "activation",
            "type": activation.grid.name,
            "granularity": "per-tensor",
            "note": "" if activation.source == activation.tensor else f"same scale as {activation.source}",
        }
        for activation in plan.activations.values()
    ]
    rows += weight_rows(plan.weights)
    rows += [
        {
            "tensor": bias.tensor,
            "kind": "bias",
            "type": "s32",
            "granularity": "that of the weight",
            "note": f"scale of {bias.activation} times scale of {bias.weight}",
        }
        for bias in plan.biases.values()
    ]
    return rows + weight_rows(plan.dynamic.stored, remark="activations quantized at run time")


def weight_rows(weights: Mapping[str, WeightPlan], *, remark: str = "") -> list[dict[str, str]]:
    """Returns one row a weight, with ``remark`` in its note."""
    rows = []
    for weight in weights.values():
        granularity = weight.granularity
        spread = f"per-channel, axis {granularity.axis}" if isinstance(granularity, PerChannel) else "per-tensor"
        sharing = "" if len(weight.nodes) == 1 else f"shared by {len(weight.nodes)} nodes"
        rows.append(
            {
                "tensor": weight.tensor,
                "kind": "weight",
                "type": weight.grid.name,
                "granularity": spread,
                "note": ", ".join(part for part in (sharing, remark) if part),
            }
        )
    return rows


def tables_remark(tables: Sequence[StoredTable]) -> str:
    """Names the embedding tables that are integers now."""
    return f"embedding tables stored as integers: {_some(tuple(table.tensor for table in tables))}"


def dead_channels_remark(channels: Mapping[str, tuple[int, ...]]) -> str:
    """Names the weights that have channels of zeros."""
    return f"channels whose weights are all zero: {_channels(channels)}"


def _remarks(report: QuantizeReport) -> list[str]:
    findings = report.findings
    remarks = []
    if findings.constant:
        remarks.append(f"constant for every sample: {_some(findings.constant)}")
    if findings.dead_channels:
        remarks.append(dead_channels_remark(findings.dead_channels))
    if findings.widened_channels:
        remarks.append(f"scales widened to fit 32-bit biases: {_channels(findings.widened_channels)}")
    if findings.reduced_channels:
        remarks.append(f"weights reduced to fit 16-bit sums: {_channels(findings.reduced_channels)}")
    if report.tables:
        remarks.append(tables_remark(report.tables))
    remarks += search_remarks(report)
    if findings.corrected:
        worst = max(findings.corrected, key=lambda name: findings.corrected[name])
        remarks.append(
            f"corrected the biases of {len(findings.corrected)} layers, by up to "
            f"{findings.corrected[worst]:.3g} in {worst}"
        )
    return remarks


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def _channels(by_tensor: Mapping[str, tuple[int, ...]]) -> str:
    return _some(tuple(f"{name} ({len(channels)})" for name, channels in by_tensor.items()))


def _decimal(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return "identical" if math.isinf(value) else f"{value:.{digits}f}"
