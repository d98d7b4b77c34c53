"""Tables of where the time goes, and of times in other settings."""

from __future__ import annotations

from qtool.metrics.latency import Interval
from qtool.reporting.model import ModelComparison, ModelReport, Report
from qtool.reporting.table_form import NONE, Table

_MOST_OPERATORS = 15


def grid_table(comparison: ModelComparison, of_model: str) -> Table:
    """Lays out the times at other batch sizes and numbers of threads."""
    return Table(
        title=f"Times of a run in other settings{of_model}",
        columns=("batch", "threads", "float", "quantized", "speedup"),
        rows=tuple(
            (
                str(point.batch_size),
                "one per core" if point.threads == 0 else str(point.threads),
                f"{point.float_ms.median:,.3f} ms",
                f"{point.quantized_ms.median:,.3f} ms",
                _ratio(point.speedup),
            )
            for point in comparison.grid
        ),
        caption="",
    )


def operators_table(report: Report) -> Table:
    """Lays out where the time of one sample goes, operator by operator, all models side by side."""
    models = (report.float_model, *(comparison.quantized_model for comparison in report.by_model))
    most: dict[str, float] = {}
    for model in models:
        for entry in model.operators:
            most[entry.operator] = max(most.get(entry.operator, 0.0), entry.seconds)
    operators = sorted(most, key=lambda operator: (-most[operator], operator))
    shown = operators[:_MOST_OPERATORS]
    rows = [(operator, *(_time(model, operator) for model in models)) for operator in shown]
    rows.append(("all", *(f"{1e3 * _total(model):,.3f} ms" for model in models)))
    left_out = len(operators) - len(shown)
    return Table(
        title="Where the time goes",
        columns=("operator", "float", *(model.name for model in models[1:])),
        rows=tuple(rows),
        caption="one sample a run, as the runtime's profiler saw it, which takes time itself; operators as the runtime "
        "rewrote them" + (f"; {left_out} more take less" if left_out else ""),
    )


def _time(model: ModelReport, operator: str) -> str:
    for entry in model.operators:
        if entry.operator == operator:
            share = 100 * entry.seconds / (_total(model) or 1.0)
            return f"{1e3 * entry.seconds:,.3f} ms (×{entry.kernels}, {share:.0f} %)"
    return NONE


def _total(model: ModelReport) -> float:
    return sum(entry.seconds for entry in model.operators)


def _ratio(ratio: Interval) -> str:
    return f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
