"""``qtool quantize --scheme weights``: what it shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from qtool.cli.console import Console
from qtool.cli.output.outlook import show_outlooks
from qtool.cli.output.quantize import shared_as_json, show_fidelity, show_skipped, show_written
from qtool.plan import WeightOnlyPlan
from qtool.workflows.quantize.quantize_weights import plan_weights, quantize_weights
from qtool.workflows.quantize.weight_only_request import Attempt, WeightOnlyReport, WeightOnlyRequest


def run_weights(console: Console, request: WeightOnlyRequest, *, json: bool, dry_run: bool) -> None:
    """Plans or quantizes, and shows what came of it."""
    if dry_run:
        plan = plan_weights(request, console.progress())
        if json:
            console.json(_plan_as_json(plan, request))
        else:
            _show_plan(console, plan, request)
        return
    report = quantize_weights(request, console.progress())
    if json:
        console.json(_report_as_json(report, request))
    else:
        _show_report(console, report, request)


def _rows(plan: WeightOnlyPlan) -> list[dict[str, str]]:
    return [
        {"tensor": name, "layers": ", ".join(item.nodes), "type": item.grid.description}
        for name, item in plan.weights.items()
    ]


def _show_plan(console: Console, plan: WeightOnlyPlan, request: WeightOnlyRequest) -> None:
    rows = [tuple(row.values()) for row in _rows(plan)]
    console.table("Weights to quantize", ("tensor", "layers", "type"), rows, request.scheme.description)
    show_skipped(console, plan.skipped)
    console.say("with integer weights: " + _counted(plan))


def _counted(plan: WeightOnlyPlan) -> str:
    return ", ".join(f"{count} {operator}" for operator, count in Counter(plan.layers.values()).items())


def _bits_counted(report: WeightOnlyReport) -> str:
    counts = Counter(item.grid.bits for item in report.plan.weights.values())
    found = [f"{count} in {bits} bits" for bits, count in sorted(counts.items())]
    floats = len(report.noise) - len(report.plan.weights)
    return ", ".join([*found, f"{floats} in float"] if floats else found)


def _bits_as_json(report: WeightOnlyReport) -> list[dict[str, object]]:
    """Returns what bits each weight got, and what it alone puts into the outputs at 4 bits."""
    planned = report.plan.weights
    return [
        {"tensor": name, "bits": planned[name].grid.bits if name in planned else None, "noise_at_4_bits": noise}
        for name, noise in report.noise.items()
    ]


def _plan_as_json(plan: WeightOnlyPlan, request: WeightOnlyRequest) -> dict[str, object]:
    return {
        "schema": "qtool.plan/1",
        "target": request.scheme.target,
        "scheme": request.scheme.description,
        "tensors": _rows(plan),
        "weight_only_nodes": [{"node": node, "operator": operator} for node, operator in plan.layers.items()],
        "float_nodes": [asdict(skip) for skip in plan.skipped],
    }


def _show_report(console: Console, report: WeightOnlyReport, request: WeightOnlyRequest) -> None:
    console.say("with integer weights: " + _counted(report.plan))
    rises = [attempt.perplexity_rise for attempt in report.attempts if attempt.perplexity_rise is not None]
    if rises:
        console.say(f"perplexity rises by {rises[0]:.2%} on samples that were not used for rounding")
    if report.noise:
        console.say("bits chosen by what each weight does to the outputs: " + _bits_counted(report))
    show_skipped(console, report.plan.skipped, counted=True)
    if report.attempts:
        products = sum(operator != "Gather" for operator in report.plan.layers.values())
        rows = [
            (
                attempt.method.value,
                f"{attempt.integer_layers} of {products}",
                f"{attempt.sqnr_db:.2f}",
                "" if attempt.speedup is None else f"{attempt.speedup:.2f}x",
                "chosen" if _is_chosen(attempt, report) else "",
            )
            for attempt in report.attempts
        ]
        console.table("Methods", ("method", "8-bit activations", "SQNR in dB", "speed, float = 1", ""), rows)
    if report.compared_on_data:
        caption = f"{request.scheme.description}; compared on {report.compared_on}"
        show_fidelity(console, report.fidelity, caption, advice="use more --bits or a smaller --block-size")
        show_outlooks(console, report.outlooks)
    else:
        console.say("runs on random inputs; give --calib-data for GPTQ, and to compare it with the float model")
    show_written(console, report)


def _is_chosen(attempt: Attempt, report: WeightOnlyReport) -> bool:
    return (attempt.method, attempt.integer_layers) == (report.method, len(report.integer_layers))


def _report_as_json(report: WeightOnlyReport, request: WeightOnlyRequest) -> dict[str, object]:
    return {
        **shared_as_json(report, request.scheme),
        "weight_method": report.method.value,
        "accuracy_level": report.level,
        "integer_layers": [name for name in report.plan.layers if name in report.integer_layers],
        "attempts": [asdict(attempt) for attempt in report.attempts],
        "mixed_bits": _bits_as_json(report),
        "weight_only_nodes": list(report.plan.layers),
        "float_nodes": [asdict(skip) for skip in report.plan.skipped],
    }
