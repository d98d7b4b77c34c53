"""Dynamic quantization on onnxruntime's CPU provider: chooses the layers whose activations are quantized at run time.

Only matrix products with stored weights gain from it: onnxruntime has one kernel that quantizes the activations,
multiplies integers and returns floats (DynamicQuantizeMatMul), and one for LSTM (DynamicQuantizeLSTM). Each
case below was read from the optimized graph and is covered by tests.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.kernel_order import orders_of
from qtool.backends.onnxruntime_cpu.recurrent_placement import WITHOUT_KERNEL, recurrent_plan, recurrent_reason
from qtool.backends.qdq_placement.layers import product_reason, weight_granularity, weight_reason
from qtool.calib.granularity import Granularity, PerTensor
from qtool.graph.constants import is_constant
from qtool.plan import DynamicPlan, Skipped, WeightPlan
from qtool.schemes import DynamicScheme

_PRODUCTS = ("MatMul", "Gemm")
# Layers that are not quantized, and why.
_OTHERS = {
    "Conv": "onnxruntime's dynamic convolution, ConvInteger, is slower than float; static quantization speeds it up",
    "ConvTranspose": "onnxruntime has no integer kernel for ConvTranspose",
    **WITHOUT_KERNEL,
}
_RECURRENT = "LSTM"


def place_dynamic(
    graph: ir.Graph, scheme: DynamicScheme, reason_to_skip: Callable[[ir.Node], str | None]
) -> DynamicPlan:
    """Returns the plan of dynamic layers of ``graph``, whose nodes all have names.

    Args:
        graph: a prepared graph.
        scheme: which integers weights become.
        reason_to_skip: returns why a layer is excluded, or None when it is not.
    """
    chosen: dict[ir.Node, None] = {}
    skipped = []
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.domain != "" or node.op_type not in (*_PRODUCTS, _RECURRENT, *_OTHERS):
            continue
        reason = "it is inside a branch or a loop" if node.graph is not graph else _reason_by_form(node)
        reason = reason or reason_to_skip(node)
        if reason is None:
            chosen[node] = None
        else:
            skipped.append(Skipped(node=node.name or "", operator=node.op_type, reason=reason))
    return DynamicPlan(
        weights=_weights([node for node in chosen if node.op_type != _RECURRENT], scheme),
        integer_nodes={node.name or "": node.op_type for node in chosen},
        skipped=tuple(skipped),
        recurrent={node.name or "": recurrent_plan(node, scheme) for node in chosen if node.op_type == _RECURRENT},
    )


def _reason_by_form(node: ir.Node) -> str | None:
    if node.op_type in _OTHERS:
        return _OTHERS[node.op_type]
    if node.op_type == _RECURRENT:
        return recurrent_reason(node)
    activation, weight = node.inputs[:2]
    if activation is None or weight is None:
        return "an input is missing"
    if is_constant(activation):
        return "it reads constants only" if is_constant(weight) else "its weights come first, not last"
    reason = weight_reason(node) or product_reason(node)
    if reason is not None:
        return reason
    if weight.shape is not None and 0 in weight.shape.numpy():
        return "its weights are empty"
    return None


def _weights(nodes: list[ir.Node], scheme: DynamicScheme) -> dict[str, WeightPlan]:
    """Plans every weight once, in a form that suits all of its readers."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        weight = node.inputs[1]
        if weight is not None:
            readers.setdefault(weight, []).append(node)
    plans = {}
    for weight, sharing in readers.items():
        tensor, names = weight.name or "", tuple(node.name or "" for node in sharing)
        wishes: set[Granularity] = {weight_granularity(node, per_channel=scheme.per_channel) for node in sharing}
        plans[tensor] = WeightPlan(
            tensor=tensor,
            grid=scheme.weights,
            granularity=wishes.pop() if len(wishes) == 1 else PerTensor(),
            nodes=names,
            largest_pair=scheme.largest_pair,
            orders=orders_of(weight, names),
        )
    return plans
