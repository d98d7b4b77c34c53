"""Runs nodes in the order in which the fewest activations are in memory at once."""

from __future__ import annotations

import onnx_ir as ir

from qtool.scheduling.assumed_sizes import assumed_sizes
from qtool.scheduling.graph_tasks import reorder


class ReorderForMemory(ir.passes.InPlacePass):
    """Puts the nodes of the main graph into the order with the lowest peak of live activations that it finds."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Reorders the nodes, where an order needs less than the one that they are in."""
        return ir.passes.PassResult(model, modified=reorder(model.graph, assumed_sizes(model)))
