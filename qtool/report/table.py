"""The report as tables of text, for the terminal and for Markdown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath

from qtool.metrics.fidelity import OutputFidelity
from qtool.report.figures import figures
from qtool.report.model import Report

_NONE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under columns.

    Attributes:
        title: what it shows.
        columns: the headings.
        rows: one cell a column each.
        caption: what a reader has to know to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


def tables(report: Report) -> tuple[Table, ...]:
    """Lays the report out: the models side by side, then the outputs."""
    return _models(report), _outputs(report)


def _models(report: Report) -> Table:
    known = figures(report)
    rows = []
    for label, left, right, digits, unit, change in (
        ("top-1 accuracy", "top1_float", "top1", 2, " %", "points"),
        ("top-5 accuracy", "top5_float", "top5", 2, " %", "points"),
        ("latency, median", "latency_float_ms", "latency_ms", 3, " ms", "speedup"),
        ("latency, p95", "latency_float_p95_ms", "latency_p95_ms", 3, " ms", "faster"),
        (f"throughput, batch {report.batch_size}", "throughput_float", "throughput", 1, " /s", "times"),
        ("size on disk", "size_float_mb", "size_mb", 2, " MB", "part"),
        ("peak memory", "memory_float_mb", "memory_mb", 1, " MB", "part"),
    ):
        a, b = known[left], known[right]
        if a is not None and b is not None:
            cells = (label, f"{a:,.{digits}f}{unit}", f"{b:,.{digits}f}{unit}", _change(report, change, a, b))
            rows.append(cells)
    measured = [f"{report.samples} samples of {report.data}"]
    if report.speedup is not None:
        measured.append(f"{report.rounds} rounds in turns, one sample a run")
    measured.append("one thread a core" if report.threads == 0 else f"threads: {report.threads}")
    return Table(
        title=f"{PurePath(report.float_model.path).name} → {PurePath(report.quantized_model.path).name}",
        columns=("", "float", "quantized", "change"),
        rows=tuple(rows),
        caption="; ".join(measured),
    )


def _change(report: Report, kind: str, left: float, right: float) -> str:
    if kind == "points":
        return f"{right - left:+.2f} points"
    if kind == "speedup" and report.speedup is not None:
        ratio = report.speedup
        return f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
    if kind == "part":
        return f"{100 * right / left:.1f} %" if left else _NONE
    faster = left / right if kind == "faster" else right / left
    return f"{faster:.2f}x"


def _outputs(report: Report) -> Table:
    columns = ("output", "SQNR", "cosine", "largest error", "mean error", "same top-1", "equal values")
    rows = tuple(_output_row(output) for output in report.fidelity)
    # Columns that no output has say nothing.
    used = [place for place in range(len(columns)) if place == 0 or any(row[place] != _NONE for row in rows)]
    remarks = [_remark(output) for output in report.fidelity if output.non_finite or output.unmatched_batches]
    return Table(
        title="Outputs beside those of the float model",
        columns=tuple(columns[place] for place in used),
        rows=tuple(tuple(row[place] for place in used) for row in rows),
        caption="; ".join(remarks),
    )


def _output_row(output: OutputFidelity) -> tuple[str, ...]:
    return (
        output.name,
        _number(output.sqnr_db, ".2f", " dB"),
        _number(output.cosine, ".6f"),
        _number(output.max_abs_error, ".4g"),
        _number(output.mean_abs_error, ".4g"),
        _number(None if output.top1_agreement is None else 100 * output.top1_agreement, ".2f", " %"),
        _number(None if output.equal_share is None else 100 * output.equal_share, ".2f", " %"),
    )


def _remark(output: OutputFidelity) -> str:
    parts = []
    if output.non_finite:
        parts.append(f"'{output.name}' has {output.non_finite} values that are NaN or infinite in one model only")
    if output.unmatched_batches:
        parts.append(f"'{output.name}' has another shape in {output.unmatched_batches} runs, which are left out")
    return "; ".join(parts)


def _number(value: float | None, form: str, unit: str = "") -> str:
    if value is None:
        return _NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "identical" if value > 0 else "all noise"
    return f"{value:{form}}{unit}"
