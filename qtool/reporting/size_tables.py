"""Table of what takes the room in the models' files."""

from __future__ import annotations

from qtool.metrics.size_by_kind import KINDS
from qtool.reporting.model import ModelReport, Report
from qtool.reporting.table_form import NONE, Table

_MEGABYTE = 1_000_000


def sizes_table(report: Report) -> Table:
    """Lays out the room that each kind of tensor takes, all models side by side."""
    models = (report.float_model, *(comparison.quantized_model for comparison in report.by_model))
    kinds = {part.kind for model in models for part in model.size_parts}
    return Table(
        title="Size by kind of tensor",
        columns=("kind", "float", *(model.name for model in models[1:])),
        rows=tuple((kind, *(_room(model, kind) for model in models)) for kind in KINDS if kind in kinds),
        caption="scales: with zero points; tables: of which rows are taken, such as embeddings; graph: nodes and names",
    )


def _room(model: ModelReport, kind: str) -> str:
    for part in model.size_parts:
        if part.kind == kind:
            share = f"{_shown(part.bytes)}, {100 * part.bytes / (model.size_bytes or 1):.1f} %"
            return f"{share} (×{part.tensors})" if part.tensors else share
    return NONE


def _shown(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.2f} MB" if nbytes >= _MEGABYTE else f"{nbytes / 1e3:,.1f} kB"
