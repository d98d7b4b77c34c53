"""Finds names that are free in a graph."""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.node_reads import graphs_in


class Names:
    """Assigns names to new values and nodes that neither a graph nor its subgraphs use.

    Values and nodes may share a name; two nodes may not, since onnxruntime refuses the graph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        """Collects every name; names added later without this object are not known."""
        self._counts: dict[str, int] = {}
        self._values: set[str | None] = set()
        self._nodes: set[str | None] = set()
        self._collect(graph)

    def _collect(self, graph: ir.Graph) -> None:
        self._values.update(value.name for value in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            self._nodes.add(node.name)
            for value in node.outputs:
                self._values.add(value.name)
            if node.attributes:
                for inner in graphs_in(node):
                    self._collect(inner)

    def free(self, wish: str) -> str:
        """Returns ``wish``, or where a value has that, ``wish`` with a number, and takes it for a value."""
        return self._free(wish, self._values)

    def for_node(self, wish: str) -> str:
        """Returns ``wish``, or where a node has that, ``wish`` with a number, and takes it for a node."""
        return self._free(wish, self._nodes)

    def for_both(self, wish: str) -> str:
        """Returns a name for a node and the value that it makes, and takes it for both."""
        return self._free(wish, self._values, self._nodes)

    def _free(self, wish: str, *taken: set[str | None]) -> str:
        name, count = wish, self._counts.get(wish, 1)
        while any(name in names for names in taken):
            name, count = f"{wish}_{count}", count + 1
        for names in taken:
            names.add(name)
        # The next request of the same name starts behind these.
        self._counts[wish] = count
        return name
