"""Removes a Relu directly after a Relu, which has no effect.

onnxruntime 1.22 to 1.30 refuses models in which two of them follow a sum or product of a tensor with itself between Q
and DQ.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.passes.normalization.remove_identities import bypass


class JoinRelus(ir.passes.InPlacePass):
    """Makes the readers of a second Relu read the first."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Removes each Relu that reads a Relu."""
        modified = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if _is_relu(node) and _is_relu(_producer(node)) and bypass(node, node.inputs[0]):
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _producer(node: ir.Node) -> ir.Node | None:
    source = node.inputs[0]
    return None if source is None else source.producer()


def _is_relu(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Relu" and node.domain == ""
