"""Groups of nodes that a search keeps float together: a layer and the operators between it and the next layer."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.graph.constants import is_constant
from qtool.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """A layer and the operators after it that run on integers because of it.

    Attributes:
        layer: the layer's name.
        operator: its type.
        nodes: the names of all nodes, in graph order, the layer's included.
    """

    layer: str
    operator: str
    nodes: tuple[str, ...]


def node_groups(model: ir.Model, plan: Plan) -> tuple[NodeGroup, ...]:
    """Divides the integer nodes of ``plan`` among its layers, in graph order.

    An operator that reads several layers' outputs belongs to the last of them. Operators before the first layer belong
    to none: they run on integers only as long as a later operator does.

    Args:
        model: the prepared float model that the plan is about.
        plan: what is quantized in it.
    """
    members: dict[str, list[str]] = {}
    owner: dict[ir.Node, str] = {}
    position: dict[str, int] = {}
    for number, node in enumerate(model.graph):
        name = node.name or ""
        operator = OPERATORS.get(node.op_type) if node.domain == "" else None
        if operator is None:
            continue
        if operator.kind is Kind.LAYER and name in plan.integer_nodes:
            owner[node], position[name], members[name] = name, number, [name]
            continue
        producers = [value.producer() for value in node.inputs if value is not None and not is_constant(value)]
        owners = [owner[producer] for producer in producers if producer is not None and producer in owner]
        if not owners or not (name in plan.integer_nodes or operator.kind is Kind.CLAMPING):
            continue
        owner[node] = max(owners, key=lambda layer: position[layer])
        if name in plan.integer_nodes:
            members[owner[node]].append(name)
    return tuple(
        NodeGroup(layer=layer, operator=plan.integer_nodes[layer], nodes=tuple(names))
        for layer, names in members.items()
    )
