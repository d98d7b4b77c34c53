"""Stores embedding tables as integers where accuracy allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from qtool.plan import Skipped
from qtool.qdq.store_tables import StoredTable, has_tables, store_tables
from qtool.selection import NodeSelection

# Returns whether the second model may replace the first.
Accepts: TypeAlias = Callable[[ir.Model, ir.Model], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The result for a model's embedding tables.

    Attributes:
        model: the resulting model.
        stored: its tables that are integers.
    """

    model: ir.Model
    stored: tuple[StoredTable, ...]

    def without_stored(self, skipped: Sequence[Skipped]) -> tuple[Skipped, ...]:
        """Returns ``skipped`` without the nodes that now read integers."""
        reading = {name for table in self.stored for name in table.nodes}
        return tuple(skip for skip in skipped if skip.node not in reading)


def with_tables(model: ir.Model, selection: NodeSelection, accepts: Accepts | None = None) -> Tables:
    """Returns a copy of ``model`` with its tables as integers where ``accepts`` allows it; else ``model`` itself.

    Without ``accepts``, every table with low noise of its own is stored as integers.
    """
    if not has_tables(model, selection):
        return Tables(model=model, stored=())
    changed = model.clone()
    stored = store_tables(changed, selection)
    if not stored or not (accepts is None or accepts(model, changed)):
        return Tables(model=model, stored=())
    return Tables(model=changed, stored=stored)
