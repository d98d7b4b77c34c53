"""Finds names that nothing in a graph has yet."""

from __future__ import annotations

import onnx_ir as ir


class Names:
    """Hands out names for new values, none of which a graph or its subgraphs use."""

    def __init__(self, graph: ir.Graph) -> None:
        """Takes note of every value's name; values that are added later without asking are not seen."""
        self._counts: dict[str, int] = {}
        self._taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        for node in ir.traversal.RecursiveGraphIterator(graph):
            self._taken.update(value.name for value in node.outputs)
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    inner = attribute.as_graph()
                    self._taken.update(value.name for value in (*inner.inputs, *inner.initializers.values()))

    def free(self, wish: str) -> str:
        """Returns ``wish``, or where that is taken, ``wish`` with a number, and takes it."""
        name, count = wish, self._counts.get(wish, 1)
        while name in self._taken:
            name, count = f"{wish}_{count}", count + 1
        self._taken.add(name)
        # The same wish again need not try all of these once more.
        self._counts[wish] = count
        return name
