"""A table of the models that are not on the runtime they were quantized for, which stands before all figures."""

from __future__ import annotations

from qtool.reporting.model import Report
from qtool.reporting.table_form import NONE, Table


def misplaced_table(report: Report) -> Table:
    """Lays out what each of these models is for, and what its figures are."""
    return Table(
        title="Not on the runtime that they were quantized for",
        columns=("model", "target", "runtime", "what that means"),
        rows=tuple(
            (model.name, model.target or NONE, model.runtime, model.misplaced)
            for model in report.models
            if model.misplaced
        ),
        caption="",
    )
