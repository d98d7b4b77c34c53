"""Finds nodes that every part may duplicate."""

from __future__ import annotations

from collections.abc import Iterable, Set

import onnx_ir as ir

from qtool.graph.constants import is_constant
from qtool.graph.node_reads import read_by


def free_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Returns the nodes that depend on constants alone, and those that only turn integers back into floats.

    Their outputs are never passed between parts: the integers of a tensor take a quarter of the bytes of its floats.
    """
    free: set[ir.Node] = set()
    constants: set[ir.Value] = set()
    for node in graph:
        read = list(read_by(node))
        if node.op_type == "Constant" or (read and all(is_constant(value) or value in constants for value in read)):
            constants.update(node.outputs)
            free.add(node)
        elif node.op_type == "DequantizeLinear" and not node.outputs[0].is_graph_output():
            free.add(node)
    return free


def with_free(nodes: Iterable[ir.Node], free: Set[ir.Node]) -> set[ir.Node]:
    """Returns ``nodes`` with the free ones that they depend on."""
    found = set(nodes)
    waiting = list(found)
    while waiting:
        for value in read_by(waiting.pop()):
            producer = value.producer()
            if producer is not None and producer in free and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found
