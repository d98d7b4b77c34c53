"""Constant folding, and removal of no-ops."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import (
    dropout_inference_rule,
    dropout_zero_rule,
    fuse_pad_into_conv_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    normalize_pad_format_conv_rule,
    transpose_transpose_rule,
)

from qtool.passes.normalization.remove_identities import RemoveIdentities
from qtool.passes.normalization.split_counts import write_lengths
from qtool.passes.quantization.neutral_constants import DropNeutralConstants

# By an operator that their patterns contain: every node of a graph is matched against every rule. The rules for x + 0
# and x * 1 are left out: they treat 1e-9 as zero.
_RULES = {
    "Dropout": (dropout_zero_rule, dropout_inference_rule),
    "Cast": (no_op_cast_rule,),
    "Expand": (no_op_expand_rule,),
    "Transpose": (no_op_transpose_rule, transpose_transpose_rule),
    "Conv": (normalize_pad_format_conv_rule,),
    "Pad": (fuse_pad_into_conv_rule,),
}


class FoldConstants(ir.passes.InPlacePass):
    """Folds constant expressions, no-ops and explicit padding, with the rules of onnxscript."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds unless the model would grow: a large tensor computed from a small one is not folded."""
        folded = optimizer.fold_constants(model, onnx_shape_inference=True)
        write_lengths(model)
        present = {node.op_type for node in model.graph}
        rules = [rule for operator, rules in _RULES.items() if operator in present for rule in rules]
        # The rules replace no-ops by Identity.
        rewritten = ir.passes.Sequential(
            DropNeutralConstants(),
            *([RewritePass(rules)] if rules else []),
            common.RemoveUnusedNodesPass(),
            RemoveIdentities(),
        )(model)
        return ir.passes.PassResult(model, modified=bool(folded.modified or rewritten.modified))
