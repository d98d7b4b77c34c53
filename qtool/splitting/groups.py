"""Assigns nodes to parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir

from qtool.errors import UsageError
from qtool.graph.node_reads import read_by
from qtool.splitting.free_nodes import free_nodes

Kind: TypeAlias = Literal["integers", "floats"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_CLAMPS = ("Relu", "Clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The nodes of one part, without the free ones that it needs.

    Attributes:
        nodes: the nodes, in the order of the graph.
        kind: integers or floats; None where parts are not divided by that.
    """

    nodes: tuple[ir.Node, ...]
    kind: Kind | None = None


def groups_at_tensors(graph: ir.Graph, cuts: Sequence[Sequence[ir.Value]]) -> tuple[Group, ...]:
    """Ends a part where all tensors of a cut are computed; each has the nodes that they need and no earlier part has.

    Raises:
        UsageError: a part would be empty.
    """
    free = free_nodes(graph)
    needs = [(cut, _needed(cut, free)) for cut in cuts]
    done: set[ir.Node] = set()
    parts: list[set[ir.Node]] = []
    for cut, needed in sorted(needs, key=lambda entry: len(entry[1])):
        if not needed - done:
            names = ", ".join(value.name or "" for value in cut)
            raise UsageError(f"nothing is left to compute before {names}", fix="cut after a node that computes")
        parts.append(needed - done)
        done |= needed
    rest = {node for node in graph if node not in done and node not in free}
    if not rest:
        raise UsageError("nothing is left after the last cut", fix="cut before a node that computes")
    parts.append(rest)
    return tuple(Group(nodes=tuple(node for node in graph if node in part)) for part in parts)


def groups_at_borders(graph: ir.Graph, integer: Set[str]) -> tuple[Group, ...]:
    """Ends a part wherever integers and floats meet.

    Tensors are passed on as integers: QuantizeLinear is in the part that computes the tensor, and DequantizeLinear in
    each part that reads it.

    Args:
        graph: a graph in QDQ form, all of whose nodes have names.
        integer: names of the nodes that run on integers.
    """
    free = free_nodes(graph)
    kinds: dict[ir.Node, Kind] = {}
    levels: dict[ir.Node, int] = {}
    usual: Kind = "floats"
    for node in graph:
        own = _own_kind(node, integer)
        if own is not None and node not in free:
            usual = own
            break
    for node in graph:
        if node in free:
            continue
        before = _makers(node, free)
        latest = max(before, key=lambda producer: levels[producer], default=None)
        kind = _own_kind(node, integer)
        if kind is None or _is_absorbed(node, integer):
            kind = usual if latest is None else kinds[latest]
        kinds[node] = kind
        levels[node] = max((levels[producer] + (kinds[producer] != kind) for producer in before), default=0)
    return _by_level(graph, kinds, levels)


def _by_level(graph: ir.Graph, kinds: Mapping[ir.Node, Kind], levels: Mapping[ir.Node, int]) -> tuple[Group, ...]:
    groups: dict[tuple[int, Kind], list[ir.Node]] = {}
    for node in graph:
        if node in kinds:
            groups.setdefault((levels[node], kinds[node]), []).append(node)
    # No node of a level depends on the other kind of that level.
    return tuple(Group(nodes=tuple(groups[key]), kind=key[1]) for key in sorted(groups))


def _own_kind(node: ir.Node, integer: Set[str]) -> Kind | None:
    """Returns what a node runs on; None for nodes that join their producers: Q, and shape arithmetic."""
    if node.name in integer:
        return "integers"
    if node.op_type == "QuantizeLinear":
        return None if node.inputs[0] is not None and node.inputs[0].producer() is not None else "integers"
    kinds = [value.dtype for value in node.outputs if value.dtype is not None]
    return None if kinds and not any(kind in _FLOATS for kind in kinds) else "floats"


def _is_absorbed(clamp: ir.Node, integer: Set[str]) -> bool:
    """Returns whether a node is a clamp between an integer kernel and Q, which is fused into that kernel."""
    if clamp.op_type not in _CLAMPS:
        return False
    producer = None if clamp.inputs[0] is None else clamp.inputs[0].producer()
    readers = {use.node.op_type for use in clamp.outputs[0].uses()}
    return producer is not None and producer.name in integer and readers == {"QuantizeLinear"}


def _makers(node: ir.Node, free: Set[ir.Node]) -> list[ir.Node]:
    """Returns the nodes that a node depends on, through free ones."""
    found: dict[ir.Node, None] = {}
    waiting, seen = [node], {node}
    while waiting:
        for value in read_by(waiting.pop()):
            producer = value.producer()
            if producer is None or producer in seen:
                continue
            seen.add(producer)
            if producer in free:
                waiting.append(producer)
            else:
                found[producer] = None
    return list(found)


def _needed(cut: Sequence[ir.Value], free: Set[ir.Node]) -> set[ir.Node]:
    needed: set[ir.Node] = set()
    waiting = [producer for value in cut if (producer := value.producer()) is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node not in free:
            needed.add(node)
        for value in read_by(node):
            producer = value.producer()
            if producer is not None and producer not in seen:
                seen.add(producer)
                waiting.append(producer)
    return needed
