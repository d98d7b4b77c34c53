"""Folds Pad into convolutions."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter.rules.common import fuse_pad_into_conv_rule, normalize_pad_format_conv_rule

from qtool.passes.fusion.rules import apply_rules

_PADS = frozenset({"Pad"})


class PadIntoConv(ir.passes.InPlacePass):
    """Folds zero padding into the pads of the Conv after it, with the rules of onnxscript."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Joins each Pad that only a Conv reads."""
        modified = apply_rules(model, (normalize_pad_format_conv_rule, fuse_pad_into_conv_rule), _PADS)
        return ir.passes.PassResult(model, modified=modified)
