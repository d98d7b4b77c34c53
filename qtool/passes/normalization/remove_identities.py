"""Removes Identity nodes, in subgraphs too, and leaves those alone whose output has to be made where it is.

The library's own pass lets a branch return a value of the graph around it, which onnxruntime refuses, and gives up on
shapes that contradict each other.
"""

from __future__ import annotations

import onnx_ir as ir


class RemoveIdentities(ir.passes.InPlacePass):
    """Lets the readers of an Identity read what it reads."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Removes each Identity that only passes a value on."""
        modified = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if node.op_type == "Identity" and node.domain == "" and bypass(node, node.inputs[0]):
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def bypass(node: ir.Node, source: ir.Value | None) -> bool:
    """Removes a node and lets the readers of its first output read ``source``, which has the same values.

    Returns whether that could be done: an output of a graph keeps its name, and is made in that graph.
    """
    output, graph = node.outputs[0], node.graph
    if source is None or graph is None:
        return False
    if output.is_graph_output():
        # A graph's output is made by one of its own nodes, and under its own name.
        producer = source.producer()
        if producer is None or producer.graph is not graph or source.is_graph_output() or _is_captured(source, graph):
            return False
        source.name = output.name
        source.shape = output.shape or source.shape
    if source.type is None:
        source.type = output.type
    if source.shape is None:
        source.shape = output.shape
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


def _is_captured(value: ir.Value, graph: ir.Graph | ir.Function) -> bool:
    """Returns whether a subgraph reads the value: it may hold another value of the name that this one would get."""
    return any(use.node.graph is not graph for use in value.uses())
