"""In which order OpenVINO's integer kernels sum up the products of a layer, where sums have 16 bits.

Kernels of oneDNN take the inputs of one place after the other, two at a time: of an even number of input channels the
pairs are those of the channels in their order. Depthwise convolutions multiply in 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from qtool.graph.constants import integer_attribute
from qtool.plan import WeightPlan
from qtool.weights.saturation import KernelOrder


def with_orders(graph: ir.Graph, weights: Mapping[str, WeightPlan]) -> dict[str, WeightPlan]:
    """Returns the plans of weights with the orders of the layers that read them."""
    nodes = {node.name or "": node for node in graph}
    found = {}
    for tensor, plan in weights.items():
        orders = [order for name in plan.nodes if (order := _order(nodes[name])) is not None]
        found[tensor] = replace(plan, orders=tuple(dict.fromkeys(orders)))
    return found


def _order(node: ir.Node) -> KernelOrder | None:
    weight = node.inputs[1]
    if weight is None or weight.shape is None:
        return None
    shape = weight.shape.numpy()
    rank = len(shape)
    if node.op_type == "Conv":
        if (shape[0], shape[1]) == (integer_attribute(node, "group", 1), 1):
            return None
        return KernelOrder((0, *range(2, rank), 1), rank - 1)
    if node.op_type == "Gemm" and integer_attribute(node, "transB", 0):
        return KernelOrder((0, 1), 1)
    return None if node.op_type == "ConvTranspose" else KernelOrder((*range(rank - 2), rank - 1, rank - 2), 1)
