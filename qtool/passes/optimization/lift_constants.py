"""Stores all constants as initializers, so that the other passes handle one form only."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

# Before IR version 4 every initializer had to be an input as well, without a meaning.
_FIRST_WITH_OPTIONAL_INPUTS = 4


class LiftConstants(ir.passes.InPlacePass):
    """Turns Constant nodes into initializers, in subgraphs too.

    Inputs that only old formats list for their initializers go; a default value that callers may override stays one.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the passes of onnx-ir."""
        steps = [common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)]
        modified = ir.passes.Sequential(*steps)(model).modified
        if model.ir_version is not None and model.ir_version < _FIRST_WITH_OPTIONAL_INPUTS:
            modified = bool(common.RemoveInitializersFromInputsPass()(model).modified) or modified
            model.ir_version = _FIRST_WITH_OPTIONAL_INPUTS
        return ir.passes.PassResult(model, modified=bool(modified))
