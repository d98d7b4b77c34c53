"""Joins MatMul and the bias behind it, where the activations are matrices, so that the bias can be an integer too."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import matmul_add_to_gemm_rule


class MatMulAddToGemm(ir.passes.InPlacePass):
    """Writes MatMul(x, W) + b as Gemm(x, W, b), with the rule of onnxscript."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Joins every pair whose input is known to have two dimensions."""
        return RewritePass(matmul_add_to_gemm_rule.commute())(model)
