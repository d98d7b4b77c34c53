"""Lays out what versions of onnxruntime make of a model, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from math import inf

from qtool.cli.console import Console
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.latency import Interval
from qtool.reporting.table_form import number
from qtool.workflows.diagnose.runtime_versions import SAME_VALUES_DB, VersionResult, VersionsReport, moved_nodes


def show_versions(console: Console, report: VersionsReport) -> None:
    """Prints one row a version, how many nodes run in which kernel, and what is not as it is here."""
    base = report.installed
    console.table(
        f"{report.model.name} in versions of onnxruntime",
        ("version", "loads", "values", "largest difference", "on integers", "time in ms", "speed"),
        [_row(result, is_base=result is base) for result in (base, *report.others)],
        f"values (SQNR) and speed beside {base.version}, which is installed here; on {report.samples}; "
        f"from {SAME_VALUES_DB:.0f} dB on, rounding alone",
    )
    tried = [result for result in (base, *report.others) if result.coverage is not None]
    kernels = list(dict.fromkeys(kernel for result in tried for kernel in result.kernels))
    if kernels:
        console.table(
            "Nodes by integer kernel",
            ("kernel", *(result.version for result in tried)),
            [(kernel, *(result.kernels.get(kernel, 0) for result in tried)) for kernel in kernels],
        )
    moved = [
        (result.version, node.node, node.operator, words, node.kernel)
        for result in report.others
        for words, nodes in (("float", moved_nodes(base, result)), ("integers", moved_nodes(result, base)))
        for node in nodes
    ]
    if moved:
        console.table(f"Not as in {base.version}", ("version", "node", "operator", "runs on", "kernel"), moved)
    for result in report.others:
        for change in result.changes:
            console.warn(f"onnxruntime {result.version}: {change}")


def versions_as_json(report: VersionsReport) -> dict[str, object]:
    """Returns the report as values for JSON."""
    return {
        "compared_on": report.samples,
        "versions": [_as_json(result, report.installed) for result in (report.installed, *report.others)],
    }


def _row(result: VersionResult, *, is_base: bool) -> tuple[str, ...]:
    coverage = result.coverage
    worst = None if is_base else _worst(result)
    errors = [output.max_abs_error for output in result.fidelity if output.max_abs_error is not None]
    return (
        f"{result.version} (installed)" if is_base else result.version,
        "yes" if result.problem is None else "no" if coverage is None else "stops as it runs",
        "" if worst is None else number(worst, ".1f", " dB"),
        "" if is_base or not errors else f"{max(errors):.3g}",
        "" if coverage is None else f"{coverage.integer} of {coverage.total}",
        _interval(result.time_ms, ".3f", ""),
        _interval(result.speedup, ".2f", "x"),
    )


def _worst(result: VersionResult) -> float | None:
    """Returns the SQNR of the worst output; that of one without floats is endless, or none."""
    found = [_decibels(output) for output in result.fidelity]
    return min(found, default=None)


def _decibels(output: OutputFidelity) -> float:
    if output.sqnr_db is not None:
        return output.sqnr_db
    return inf if output.identical else -inf


def _interval(interval: Interval | None, form: str, unit: str) -> str:
    if interval is None:
        return ""
    return f"{interval.median:{form}}{unit} ({interval.low:{form}} to {interval.high:{form}})"


def _as_json(result: VersionResult, base: VersionResult) -> dict[str, object]:
    coverage = result.coverage
    return {
        "version": result.version,
        "installed": result is base,
        "problem": result.problem,
        "outputs": [asdict(output) for output in result.fidelity],
        "integer_nodes": None if coverage is None else coverage.integer,
        "quantizable_nodes": None if coverage is None else coverage.total,
        "kernels": dict(result.kernels),
        "became_float": [node.node for node in moved_nodes(base, result)],
        "became_integer": [node.node for node in moved_nodes(result, base)],
        "time_ms": None if result.time_ms is None else asdict(result.time_ms),
        "fastest_ms": result.fastest_ms,
        "speedup": None if result.speedup is None else asdict(result.speedup),
        "changes": list(result.changes),
    }
