"""The values that a node reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the values that a node reads, including those that its subgraphs capture.

    In order; a value that is read twice comes twice.
    """
    yield from (value for value in node.inputs if value is not None)
    for graph in graphs_in(node):
        own = {*graph.inputs, *graph.initializers.values(), *(value for one in graph for value in one.outputs)}
        for one in graph:
            yield from (value for value in read_by(one) if value not in own)
        yield from (value for value in graph.outputs if value not in own)


def graphs_in(node: ir.Node) -> Iterator[ir.Graph]:
    """Yields the subgraphs of a node: branches and loop bodies."""
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = tuple(attribute.as_graphs())
        yield from graphs
