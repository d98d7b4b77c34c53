"""Writes subtraction and division by constants as addition and multiplication, which run on integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array
from qtool.graph.names import Names


class CanonicalArithmetic(ir.passes.InPlacePass):
    """Rewrites x - c as x + (-c) and x / c as x * (1 / c), for float constants c without zeros."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites each such node in place, under its own name."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            if node.domain != "" or node.op_type not in ("Sub", "Div"):
                continue
            left, right = node.inputs
            array = constant_array(right)
            if left is None or right is None or array is None or not np.issubdtype(array.dtype, np.floating):
                continue
            if node.op_type == "Div" and (array == 0).any():
                continue
            # onnxruntime recognizes a Gelu, which it runs as one operator, by x / sqrt(2) before Erf.
            if any(use.node.op_type == "Erf" for use in node.outputs[0].uses()):
                continue
            inverse = -array if node.op_type == "Sub" else (1.0 / array.astype(np.float64)).astype(array.dtype)
            name = "negated" if node.op_type == "Sub" else "reciprocal"
            constant = add_constant(model.graph, f"{right.name}_{name}", inverse, names=names)
            replacement = ir.node("Add" if node.op_type == "Sub" else "Mul", [left, constant], name=node.name)
            replace_node(model.graph, node, replacement)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Replaces ``old`` by ``new``; its outputs take over names, types, shapes and readers."""
    graph.insert_before(old, new)
    for before, after in zip(old.outputs, new.outputs, strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
