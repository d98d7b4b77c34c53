"""Runs nodes in the order in which the fewest activations are in memory at once."""

from __future__ import annotations

import onnx_ir as ir

from qtool.analysis.lifetimes import memory_use
from qtool.scheduling.assumed_sizes import assumed_sizes
from qtool.scheduling.graph_tasks import reorder


class ReorderForMemory(ir.passes.InPlacePass):
    """Puts the nodes of the main graph into the order with the lowest peak of live activations that it finds.

    Attributes:
        remark: the peaks before and after, in words; None where the order stayed.
    """

    def __init__(self) -> None:
        """Has nothing to say before it runs."""
        self.remark: str | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Reorders the nodes, where an order needs less than the one that they are in."""
        sizes = assumed_sizes(model)
        before = memory_use(model.graph, sizes).peak_bytes
        modified = reorder(model.graph, sizes)
        self.remark = None
        if modified:
            after = memory_use(model.graph, sizes).peak_bytes
            self.remark = f"peak of live activations {before:,} → {after:,} bytes, free dimensions at usual lengths"
        return ir.passes.PassResult(model, modified=modified)
