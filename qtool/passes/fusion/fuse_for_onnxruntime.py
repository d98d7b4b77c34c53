"""Fuses transformers into onnxruntime's own operators, with the fusions of onnxscript."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter.ort_fusions import optimize_for_ort

# Attention without this there is not.
_SOFTMAX = "Softmax"


class FuseForOnnxruntime(ir.passes.InPlacePass):
    """Fuses Attention, MultiHeadAttention, SkipLayerNormalization, BiasGelu and similar operators.

    The library also rewrites without fusing: where it fuses nothing, the graph is not changed.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Works on a copy, which takes the place of the graph if something was fused."""
        if not any(node.op_type == _SOFTMAX for node in model.graph):
            return ir.passes.PassResult(model, modified=False)
        fused, counts = optimize_for_ort(model.clone())
        if not sum(counts.values()):
            return ir.passes.PassResult(model, modified=False)
        model.graph = fused.graph
        model.functions.clear()
        model.functions.update(fused.functions)
        return ir.passes.PassResult(model, modified=True)
