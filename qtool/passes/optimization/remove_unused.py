"""Dead code elimination."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


class RemoveUnused(ir.passes.InPlacePass):
    """Removes dead nodes, and unused optional outputs, constants and operator sets."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the passes of onnx-ir; inputs of the model stay, used or not."""
        removed = ir.passes.Sequential(common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass())(model)
        modified = bool(removed.modified)
        for graph in model.graphs():
            if graph is model.graph or not isinstance(graph, ir.Graph):
                continue
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]
                    modified = True
        return ir.passes.PassResult(model, modified=modified)
