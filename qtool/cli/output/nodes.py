"""Lays out the nodes of a graph, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from qtool.cli.console import Console
from qtool.workflows.diagnose.list_nodes import NodeRow, TensorRow

_LONGEST_NAME = 48


def show_nodes(console: Console, rows: Sequence[NodeRow], *, with_kernels: bool) -> None:
    """Prints one row for each node, in the order of the graph."""
    columns = ("node", "operator", "after", "constants", "makes", "attributes", *(("runs as",) if with_kernels else ()))
    console.table(
        f"{len(rows)} nodes",
        columns,
        [
            (
                _short(row.node if row.graph is None else f"{row.graph} > {row.node}"),
                f"{row.domain}.{row.operator}" if row.domain else row.operator,
                ", ".join(map(_short, row.depends_on)),
                ", ".join(_type(one) for one in row.inputs if one.constant),
                ", ".join(_type(one) for one in row.outputs),
                ", ".join(f"{name}={value}" for name, value in row.attributes.items()),
                *((_kernel(row),) if with_kernels else ()),
            )
            for row in rows
        ],
        "as it runs on this machine" if with_kernels else None,
    )


def nodes_as_json(rows: Sequence[NodeRow]) -> list[dict[str, object]]:
    """Returns the nodes as values for JSON, in the order of the graph."""
    return [asdict(row) for row in rows]


def _kernel(row: NodeRow) -> str:
    if row.runs_as is None:
        return ""
    if row.runs_as.kernel is None:
        return "fused or removed"
    return f"{row.runs_as.kernel} in {row.runs_as.precision or 'an unknown type'}"


def _type(one: TensorRow) -> str:
    dims = "?" if one.shape is None else " × ".join("?" if dim is None else str(dim) for dim in one.shape) or "scalar"
    layout = "" if one.layout is None else f" {one.layout.upper()}"
    return f"{one.dtype or '?'} {dims}{layout}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
