"""Describes what a node reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the values that a node reads, those that graphs inside it take from outside them included.

    A value comes as often as it is read, in the order in which it is.
    """
    yield from (value for value in node.inputs if value is not None)
    for graph in graphs_in(node):
        own = {*graph.inputs, *graph.initializers.values(), *(value for one in graph for value in one.outputs)}
        for one in graph:
            yield from (value for value in read_by(one) if value not in own)
        yield from (value for value in graph.outputs if value not in own)


def graphs_in(node: ir.Node) -> Iterator[ir.Graph]:
    """Yields the graphs inside a node: branches and loop bodies."""
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = tuple(attribute.as_graphs())
        yield from graphs
