"""Which parts of a model run once, so that shapes found for their tensors hold whenever they run."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def straight_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yields the nodes of a graph in order, those in the branches of each If before it.

    Bodies of loops are left out: their tensors may grow from run to run. Nodes may be removed on the way.
    """
    for node in list(graph):
        if node.op_type == "If" and node.domain == "":
            for branch in node.attributes.values():
                if branch.type == ir.AttributeType.GRAPH:
                    yield from straight_nodes(branch.as_graph())
        yield node


def forget_removed_branches(model: ir.Model) -> None:
    """Takes back what nodes read that went with the If or Loop around them, and would count as readers for ever."""
    live = set(model.graph.all_nodes())
    values = [*model.graph.inputs]
    for graph in graphs_of(model):
        values += graph.initializers.values()
    values += [output for node in live for output in node.outputs]
    for value in values:
        for use in [use for use in value.uses() if use.node not in live]:
            use.node.replace_input_with(use.idx, None)


def graphs_of(model: ir.Model) -> list[ir.Graph]:
    """Returns the graph and every graph inside of it, in the order of their nodes."""
    found = [model.graph]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                found.append(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                found.extend(attribute.as_graphs())
    return found
