"""Channels first (NCHW) from end to end, the layout of ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.passes.layout.transposes import cancel_transposes
from qtool.passes.normalization.remove_identities import RemoveIdentities

# Cancelling can bring others together; each round leaves fewer than the one before.
_MOST_ROUNDS = 4


class ToNchw(ir.passes.InPlacePass):
    """Moves Transpose nodes towards the outputs until they cancel each other, where fewer are left.

    The axes of the nodes between them are adapted. Inputs and outputs of the graph keep their layout.

    Attributes:
        remark: how many there were and are, in words; None where nothing changed.
    """

    def __init__(self) -> None:
        """Starts without a remark."""
        self.remark: str | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cancels Transpose nodes, and removes nodes without effect."""
        before = _count(model.graph)
        self.remark = None
        if not before:
            return ir.passes.PassResult(model, modified=False)
        infer_shapes(model)
        rounds = 0
        while rounds < _MOST_ROUNDS and cancel_transposes(model.graph, model.opset_imports.get("", 1)):
            rounds += 1
        if rounds:
            RemoveIdentities()(model)
            self.remark = f"{before} → {_count(model.graph)} Transpose nodes"
        return ir.passes.PassResult(model, modified=rounds > 0)


def _count(graph: ir.Graph) -> int:
    return sum(node.op_type == "Transpose" and not node.domain for node in graph)
