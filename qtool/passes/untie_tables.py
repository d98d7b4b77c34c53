"""Gives a layer that shares its weight with an embedding table a weight of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.passes.constants import add_constant, constant_array, integer_attribute, sole_consumer
from qtool.passes.names import Names

_READERS = frozenset({"MatMul", "Gemm"})


class UntieTables(ir.passes.InPlacePass):
    """Replaces Transpose(table), read by one layer, by the transposed table, where all else that reads it are Gathers.

    Both become integers of their own, with scales that suit rows and products, and together take half of the floats.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Unties each such table."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            if node.op_type != "Transpose" or node.domain != "":
                continue
            source, target = node.inputs[0], node.outputs[0]
            table, reader = constant_array(source), sole_consumer(target)
            if source is None or table is None or reader is None or reader.op_type not in _READERS:
                continue
            if not all(use.node is node or _looks_up(use.node, use.idx) for use in source.uses()):
                continue
            order = node.attributes.get("perm")
            axes = tuple(reversed(range(table.ndim))) if order is None else tuple(order.as_ints())
            own = add_constant(model.graph, f"{source.name}_transposed", np.transpose(table, axes), names=names)
            target.replace_all_uses_with(own)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _looks_up(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 0 and integer_attribute(node, "axis", 0) == 0
