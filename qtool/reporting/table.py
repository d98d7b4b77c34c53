"""The report as tables of text, for the terminal, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qtool.llm.language_tables import answers_table, language_table, with_interval
from qtool.metrics.fidelity import OutputFidelity
from qtool.reporting.figures import FIGURES
from qtool.reporting.misplaced_table import misplaced_table
from qtool.reporting.model import Measured, ModelComparison, Report, UsedData
from qtool.reporting.overflow_table import overflow_table
from qtool.reporting.sample_tables import classes_table, samples_table
from qtool.reporting.size_tables import sizes_table
from qtool.reporting.table_form import NONE, Table, number
from qtool.reporting.time_tables import grid_table, operators_table

_WORST_LAYERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A figure that both models have."""

    label: str
    float_figure: str
    figure: str
    digits: int
    unit: str
    change: str


def tables(report: Report, *, changes: bool = True) -> tuple[Table, ...]:
    """Lays the report out: the models side by side, the outputs, and what else was to be looked at.

    Args:
        report: the report.
        changes: whether the classes and the samples that change most belong to it.
    """
    found = [overflow_table(report)] if any(model.overflowing_layers for model in report.models) else []
    if any(model.misplaced for model in report.models):
        found.append(misplaced_table(report))
    found.append(_models(report))
    if any(comparison.language is not None for comparison in report.comparisons):
        found.append(language_table(report))
    if report.by_model[0].answers:
        found.append(answers_table(report))
    found.append(_outputs(report))
    if report.float_model.size_parts:
        found.append(sizes_table(report))
    for comparison in report.comparisons:
        about = _about(report.called(comparison))
        if changes and comparison.classes:
            found.append(classes_table(comparison, about))
        if changes and comparison.samples:
            found.append(samples_table(comparison, about))
    found += [
        grid_table(comparison, _of_model(comparison, report)) for comparison in report.by_model if comparison.grid
    ]
    if report.float_model.operators:
        found.append(operators_table(report))
    found += [_layers(comparison, report) for comparison in report.by_model if comparison.layers]
    if report.verdicts:
        found.append(_verdicts(report))
    return tuple(found)


def _models(report: Report) -> Table:
    rows = []
    for row in _rows(report):
        datasets = report.datasets if FIGURES[row.figure].of_data else report.datasets[:1]
        for dataset in datasets:
            cells = _cells(row, report.on(dataset))
            if cells:
                rows.append((f"{row.label}, {dataset.name}" if len(datasets) > 1 else row.label, *cells))
    names = tuple(comparison.quantized_model.name for comparison in report.by_model)
    columns = ("", "float", *names) if len(names) > 1 else ("", "float", "quantized", "change")
    return Table(
        title=f"{report.float_model.name} → {', '.join(names)}",
        columns=columns,
        rows=tuple(rows),
        caption=_measured_on(report),
    )


def _cells(row: _Row, comparisons: Sequence[ModelComparison]) -> tuple[str, ...]:
    """Returns the figure of the float model and those of the others; nothing where there are none."""
    found = [comparison.figures[row.figure] for comparison in comparisons]
    base = comparisons[0].figures[row.float_figure]
    if base.value is None or all(figure.value is None for figure in found):
        return ()
    changes = [_change(row, comparison, comparison.figures[row.float_figure]) for comparison in comparisons]
    shown = [_shown(row, figure) for figure in found]
    if len(shown) == 1:
        return (_shown(row, base), shown[0], changes[0])
    return (_shown(row, base), *(f"{cell}, {change}" for cell, change in zip(shown, changes, strict=True)))


def _rows(report: Report) -> tuple[_Row, ...]:
    times = report.float_model.token_times
    one = "latency" if times is None else "one token"
    prompt = "" if times is None else f", {times.prompt_tokens} tokens"
    cached = "" if times is None else f", {times.cached_tokens} in the cache"
    return tuple(
        _Row(label=label, float_figure=left, figure=right, digits=digits, unit=unit, change=change)
        for label, left, right, digits, unit, change in (
            ("top-1 accuracy", "top1_float", "top1", 2, " %", "points"),
            ("top-5 accuracy", "top5_float", "top5", 2, " %", "points"),
            (f"{report.metric}", "metric_float", "metric", 4, "", "difference"),
            ("perplexity", "perplexity_float", "perplexity", 3, "", "rise"),
            (f"time to the first token{prompt}", "first_token_float_ms", "first_token_ms", 1, " ms", "faster"),
            (f"prefill{prompt}", "prefill_float", "prefill", 1, " tokens/s", "prefill"),
            (f"decode{cached}", "decode_float", "decode", 1, " tokens/s", "decode"),
            (f"{one}, median", "latency_float_ms", "latency_ms", 3, " ms", "speedup"),
            (f"{one}, p95", "latency_float_p95_ms", "latency_p95_ms", 3, " ms", "faster"),
            (f"throughput, batch {report.batch_size}", "throughput_float", "throughput", 1, " /s", "times"),
            ("cold start", "cold_start_float_ms", "cold_start_ms", 1, " ms", "faster"),
            ("size on disk", "size_float_mb", "size_mb", 2, " MB", "part"),
            ("peak memory", "memory_float_mb", "memory_mb", 1, " MB", "part"),
        )
    )


def _measured_on(report: Report) -> str:
    measured = [
        " and ".join(
            f"{dataset.samples} {'rows' if dataset.tokens else 'samples'} of {_source(dataset)}"
            for dataset in report.datasets
        )
    ]
    if report.rounds:
        what = "sample" if report.float_model.token_times is None else "prompt or one token"
        measured.append(f"{report.rounds} rounds in turns, one {what} a run")
    measured.append("one thread a core" if report.threads == 0 else f"threads: {report.threads}")
    return "; ".join(measured)


def _source(dataset: UsedData) -> str:
    return dataset.source if dataset.source.endswith(dataset.name) else f"{dataset.name} ({dataset.source})"


def _shown(row: _Row, figure: Measured) -> str:
    if row.change == "rise":
        return with_interval(figure, f",.{row.digits}f", row.unit)
    return NONE if figure.value is None else f"{figure.value:,.{row.digits}f}{row.unit}"


def _change(row: _Row, comparison: ModelComparison, base: Measured) -> str:
    left, right = base.value, comparison.figures[row.figure].value
    if left is None or right is None:
        return NONE
    if row.change == "points":
        return f"{right - left:+.2f} points"
    if row.change == "difference":
        return f"{right - left:+.4f}"
    if row.change == "rise":
        return with_interval(comparison.figures["perplexity_rise"], "+.2f", " %")
    if row.change in ("speedup", "prefill", "decode"):
        ratio = comparison.figures["speedup" if row.change == "speedup" else f"{row.change}_speedup"]
        return with_interval(ratio, ".2f", "x")
    if row.change == "part":
        return f"{100 * right / left:.1f} %" if left else NONE
    faster = left / right if row.change == "faster" else right / left
    return f"{faster:.2f}x"


def _outputs(report: Report) -> Table:
    columns = ("model", "data", "output", "SQNR", "cosine", "largest error", "mean error", "same top-1", "equal values")
    pairs = [(comparison, output) for comparison in report.comparisons for output in comparison.fidelity]
    rows = tuple(
        (comparison.quantized_model.name, comparison.dataset, *_output_row(output)) for comparison, output in pairs
    )
    # Columns without values are left out, and those of the only model and the only dataset.
    needed = (len(report.by_model) > 1, len(report.datasets) > 1, True)
    used = [
        place
        for place in range(len(columns))
        if (needed[place] if place < len(needed) else any(row[place] != NONE for row in rows))
    ]
    remarks = []
    for comparison, output in pairs:
        if output.non_finite or output.unmatched_batches or output.part is not None:
            called = report.called(comparison)
            remarks.append(f"{called}: {_remark(output)}" if called else _remark(output))
    return Table(
        title="Outputs beside those of the float model",
        columns=tuple(columns[place] for place in used),
        rows=tuple(tuple(row[place] for place in used) for row in rows),
        caption="; ".join(remarks),
    )


def _layers(comparison: ModelComparison, report: Report) -> Table:
    known = [layer for layer in comparison.layers if not math.isnan(layer.sqnr_db)]
    worst = sorted(known, key=lambda layer: layer.sqnr_db)[:_WORST_LAYERS]
    rescaled = any(layer.rescaled for layer in worst)
    return Table(
        title="Tensors inside that differ most" + _of_model(comparison, report),
        columns=("tensor", "made by", "held as", "SQNR"),
        rows=tuple(
            (
                layer.tensor,
                layer.operator,
                ("integers" if layer.quantized else "float") + (", rescaled" if layer.rescaled else ""),
                number(layer.sqnr_db, ".2f", " dB"),
            )
            for layer in worst
        ),
        caption=f"{len(worst)} of {len(comparison.layers)} tensors; the errors of the layers before are in them"
        + ("; rescaled: compared without the factors that the quantizer moved between layers" if rescaled else ""),
    )


def _verdicts(report: Report) -> Table:
    several = len(report.datasets) > 1
    return Table(
        title="Gates",
        columns=("model", *(("data",) if several else ()), "condition", "outcome", "figure"),
        rows=tuple(
            (
                verdict.model,
                *((verdict.dataset or NONE,) if several else ()),
                verdict.condition,
                verdict.outcome,
                verdict.message,
            )
            for verdict in report.verdicts
        ),
        caption="",
    )


def _of_model(comparison: ModelComparison, report: Report) -> str:
    return _about(report.described(comparison.quantized_model.name, ""))


def _about(what: str) -> str:
    return f": {what}" if what else ""


def _output_row(output: OutputFidelity) -> tuple[str, ...]:
    return (
        output.name,
        number(output.sqnr_db, ".2f", " dB"),
        number(output.cosine, ".6f"),
        number(output.max_abs_error, ".4g"),
        number(output.mean_abs_error, ".4g"),
        number(None if output.top1_agreement is None else 100 * output.top1_agreement, ".2f", " %"),
        number(None if output.equal_share is None else 100 * output.equal_share, ".2f", " %"),
    )


def _remark(output: OutputFidelity) -> str:
    parts = []
    if output.non_finite:
        parts.append(f"'{output.name}' has {output.non_finite} values that are NaN or infinite in one model only")
    if output.unmatched_batches:
        parts.append(
            f"'{output.name}' has another shape in {output.unmatched_batches} runs; what one lacks counts as zeros"
        )
    if output.part is not None:
        parts.append(f"'{output.name}' holds values of unlike size: its SQNR is that of {output.part}")
    return "; ".join(parts)
