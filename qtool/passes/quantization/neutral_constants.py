"""Removes additions of zero and multiplications by one."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qtool.graph.constants import broadcast_number
from qtool.passes.quantization.arithmetic import replace_node

# The neutral constant, and whether it may be the left operand too.
_NEUTRAL: Mapping[str, tuple[int, bool]] = {"Add": (0, True), "Sub": (0, False), "Mul": (1, True), "Div": (1, False)}


class DropNeutralConstants(ir.passes.InPlacePass):
    """Replaces x + 0, x - 0, x * 1 and x / 1 by an Identity.

    The constant must be exact: 1e-10 before a logarithm has a purpose.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at nodes of the graph itself whose constant is a single value that adds no axes."""
        modified = False
        for node in list(model.graph):
            if node.domain or node.op_type not in _NEUTRAL:
                continue
            kept = _unchanged(node)
            if kept is not None:
                replace_node(model.graph, node, ir.node("Identity", [kept], name=node.name))
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _unchanged(node: ir.Node) -> ir.Value | None:
    neutral, either_side = _NEUTRAL[node.op_type]
    left, right = node.inputs
    for value, constant in ((left, right), (right, left))[: 2 if either_side else 1]:
        if value is not None and broadcast_number(constant, value) == neutral:
            return value
    return None
