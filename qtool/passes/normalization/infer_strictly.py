"""Infers types and shapes, or none where a node contradicts its inputs."""

from __future__ import annotations

import onnx_ir as ir

from qtool.formats.onnx.strict_shapes import infer_strictly


class InferStrictly(ir.passes.InPlacePass):
    """Fills in the types and shapes of all tensors; none where a node contradicts its inputs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infers them with the onnx package, and takes what it finds over what the graph says."""
        return ir.passes.PassResult(model, modified=infer_strictly(model))
