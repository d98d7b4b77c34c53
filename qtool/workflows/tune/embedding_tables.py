"""Lets embedding tables be stored as integers where the outputs bear it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from qtool.plan import Skipped
from qtool.qdq.store_tables import StoredTable, store_tables
from qtool.selection import NodeSelection

# Tells whether the first model may give way to the second.
Accepts: TypeAlias = Callable[[ir.Model, ir.Model], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What became of a model's tables.

    Attributes:
        model: the model to go on with.
        stored: the tables that are integers in it.
    """

    model: ir.Model
    stored: tuple[StoredTable, ...]

    def without_stored(self, skipped: Sequence[Skipped]) -> tuple[Skipped, ...]:
        """Returns ``skipped`` without the nodes that read integers now."""
        reading = {name for table in self.stored for name in table.nodes}
        return tuple(skip for skip in skipped if skip.node not in reading)


def with_tables(model: ir.Model, selection: NodeSelection, accepts: Accepts | None = None) -> Tables:
    """Returns ``model``, which is left as it is, with its tables as integers where ``accepts`` takes that.

    Without ``accepts``, every table counts whose own noise is low.
    """
    changed = model.clone()
    stored = store_tables(changed, selection)
    if not stored or not (accepts is None or accepts(model, changed)):
        return Tables(model=model, stored=())
    return Tables(model=changed, stored=stored)
