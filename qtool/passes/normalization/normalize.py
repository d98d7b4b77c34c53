"""Brings graphs of every exporter into one form, with the passes of onnx-ir."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.graph.unpacked_product import is_of_the_model
from qtool.passes.normalization.infer_strictly import InferStrictly
from qtool.passes.normalization.remove_identities import RemoveIdentities


class InlineFunctions(ir.passes.InPlacePass):
    """Replaces calls of model-local functions by their bodies."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inlines every function."""
        return ir.passes.Sequential(common.InlinePass(is_of_the_model), common.RemoveUnusedOpsetsPass())(model)


class ConstantsToInitializers(ir.passes.InPlacePass):
    """Stores every constant in one way: as an initializer that is not an input."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lifts Constant nodes and takes initializers off the input list."""
        return ir.passes.Sequential(
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.RemoveInitializersFromInputsPass(),
            RemoveIdentities(),
        )(model)


class Tidy(ir.passes.InPlacePass):
    """Removes what nothing uses, sorts the nodes, names them all, and infers shapes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the library's own cleaners."""
        return ir.passes.Sequential(
            common.RemoveUnusedNodesPass(),
            common.TopologicalSortPass(),
            common.NameFixPass(),
            InferStrictly(),
        )(model)
