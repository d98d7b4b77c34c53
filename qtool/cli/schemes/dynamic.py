"""``qtool quantize --scheme dynamic``: what it shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from qtool.cli.console import Console
from qtool.cli.output.outlook import show_outlooks
from qtool.cli.output.quantize import (
    dead_channels_remark,
    shared_as_json,
    show_coverage,
    show_fidelity,
    show_skipped,
    show_written,
    tables_remark,
    weight_rows,
)
from qtool.plan import DynamicPlan
from qtool.search.activation_forms import BLOCK, ActivationForm
from qtool.workflows.quantize.dynamic_request import DynamicReport, DynamicRequest
from qtool.workflows.quantize.quantize_dynamic import plan_dynamic, quantize_dynamic


def run_dynamic(console: Console, request: DynamicRequest, *, json: bool, dry_run: bool) -> None:
    """Plans or quantizes, and shows what came of it."""
    if dry_run:
        plan = plan_dynamic(request, console.progress())
        if json:
            console.json(_plan_as_json(plan, request))
        else:
            _show_plan(console, plan, request)
        return
    report = quantize_dynamic(request, console.progress())
    if json:
        console.json(_report_as_json(report, request))
    else:
        _show_report(console, report, request)


def _show_plan(console: Console, plan: DynamicPlan, request: DynamicRequest) -> None:
    rows = [tuple(row.values()) for row in weight_rows(plan.stored)]
    console.table(
        "Tensors to quantize", ("tensor", "kind", "type", "granularity", "note"), rows, request.scheme.description
    )
    show_skipped(console, plan.skipped)
    counts = Counter(plan.integer_nodes.values())
    console.say("to run on integers: " + ", ".join(f"{count} {operator}" for operator, count in counts.items()))


def _plan_as_json(plan: DynamicPlan, request: DynamicRequest) -> dict[str, object]:
    return {
        "schema": "qtool.plan/1",
        "target": request.scheme.target,
        "scheme": request.scheme.description,
        "tensors": weight_rows(plan.stored),
        "integer_nodes": [{"node": node, "operator": operator} for node, operator in plan.integer_nodes.items()],
        "dynamic_nodes": list(plan.integer_nodes),
        "float_nodes": [asdict(skip) for skip in plan.skipped],
    }


def _show_report(console: Console, report: DynamicReport, request: DynamicRequest) -> None:
    show_coverage(console, report.coverage)
    show_skipped(console, report.plan.skipped, counted=True)
    _show_forms(console, report)
    if report.compared_on_data:
        caption = f"{request.scheme.description}; compared on {report.compared_on}"
        show_fidelity(console, report.fidelity, caption, advice="try --scheme static, or --exclude some nodes")
        show_outlooks(console, report.outlooks)
    else:
        console.say("runs on random inputs; give --calib-data to compare it with the float model on real ones")
    if report.dead_channels:
        console.say(dead_channels_remark(report.dead_channels))
    if report.tables:
        console.say(tables_remark(report.tables))
    show_written(console, report)


def _show_forms(console: Console, report: DynamicReport) -> None:
    """Shows the forms that were compared, where there was more than one, and what the result has."""
    if len(report.attempts) > 1:
        rows = [
            (
                "yes" if attempt.smoothed else "no",
                *(str(attempt.layers[form]) for form in ActivationForm),
                f"{attempt.sqnr_db:.2f}",
            )
            for attempt in report.attempts
        ]
        columns = ("outlier channels smoothed", *(f"layers {form}" for form in ActivationForm), "SQNR in dB")
        console.table("Forms evaluated", columns, rows)
    if report.smoothed:
        console.say(f"outlier channels of {len(report.smoothed)} tensors moved into weights (SmoothQuant)")
    if report.in_blocks:
        console.say(
            f"{len(report.in_blocks)} layers have a scale for each block of {BLOCK} activations of a row, where one "
            "scale for all costs too much"
        )


def _report_as_json(report: DynamicReport, request: DynamicRequest) -> dict[str, object]:
    return {
        **shared_as_json(report, request.scheme),
        "dead_channels": {name: list(channels) for name, channels in report.dead_channels.items()},
        "dynamic_nodes": list(report.plan.integer_nodes),
        "nodes_in_blocks": list(report.in_blocks),
        "smoothed": list(report.smoothed),
        "forms": [
            {
                "smoothed": attempt.smoothed,
                "layers": {form.value: count for form, count in attempt.layers.items()},
                "sqnr_db": attempt.sqnr_db,
            }
            for attempt in report.attempts
        ],
        "search_ended": report.search_ended,
        "float_nodes": [asdict(skip) for skip in report.plan.skipped],
    }
