"""A table of the models that the processor of a report computes wrongly, which stands before all figures."""

from __future__ import annotations

from qtool.reporting.model import Report
from qtool.reporting.table_form import Table

_MOST_NAMES = 5


def overflow_table(report: Report) -> Table:
    """Lays out the layers of each model whose integer sums can overflow here."""
    return Table(
        title="Integer sums can overflow on this processor",
        columns=("model", "layers", "which"),
        rows=tuple(
            (model.name, str(len(model.overflowing_layers)), _some(model.overflowing_layers))
            for model in report.models
            if model.overflowing_layers
        ),
        caption="it adds products in 16 bits, so that outputs, accuracy and scores below are not those that the model "
        "has elsewhere; quantize with --target auto here, or with --target x86 for every x86",
    )


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
