"""Replaces nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

Attributes: TypeAlias = Mapping[str, int | float | str | Sequence[int]]
_NONE: Attributes = {}


def replace(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Attributes = _NONE,
    *,
    domain: str = "",
) -> ir.Node:
    """Replaces ``node``, and returns it by a node of another operator, with one output,."""
    graph = node.graph
    if graph is None:
        raise AssertionError("the node was removed before")
    made = ir.node(op_type, inputs, attributes, domain=domain, name=node.name)
    old, new = node.outputs[0], made.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return made
