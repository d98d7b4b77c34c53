"""Weight-only quantization on onnxruntime's CPU provider: chooses the layers whose weights become integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from qtool.backends.qdq_placement.layers import product_reason
from qtool.graph.constants import has_rows_of_outputs, is_constant, is_transposed, reads_rows
from qtool.plan import BlockPlan, Skipped, WeightOnlyPlan
from qtool.weights.blocks.grid import BlockGrid

# Smaller tables are not worth it.
_SMALLEST_TABLE_BYTES = 1 << 16
_PRODUCTS = ("MatMul", "Gemm")
_OTHERS = {
    "Conv": "onnxruntime has no kernel for convolutions with 8-bit or narrower weights and float activations",
    "ConvTranspose": "onnxruntime has no integer kernel for ConvTranspose",
    "LSTM": "its products are inside one operator, which stays float",
    "GRU": "its products are inside one operator, which stays float",
    "RNN": "its products are inside one operator, which stays float",
}


def place_weights(graph: ir.Graph, grid: BlockGrid, reason_to_skip: Callable[[ir.Node], str | None]) -> WeightOnlyPlan:
    """Returns the plan for ``graph``, a prepared graph whose nodes all have names.

    Args:
        graph: the graph.
        grid: which integers weights become.
        reason_to_skip: returns why a layer is excluded, or None when it is not.
    """
    readers = dict(_tables(graph, reason_to_skip))
    skipped = []
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.domain != "" or (node.op_type not in _PRODUCTS and node.op_type not in _OTHERS):
            continue
        reason = "it is inside a branch or a loop" if node.graph is not graph else _reason_by_form(node, readers)
        reason = reason or reason_to_skip(node)
        weight = node.inputs[1]
        if reason is None and weight is not None:
            readers.setdefault(weight, []).append(node)
        else:
            skipped.append(Skipped(node=node.name or "", operator=node.op_type, reason=reason or "it has no weights"))
    plans = {
        weight.name or "": BlockPlan(
            tensor=weight.name or "", grid=grid, nodes=tuple(node.name or "" for node in sharing)
        )
        for weight, sharing in readers.items()
    }
    names = {name for plan in plans.values() for name in plan.nodes}
    chosen = {node.name or "": node.op_type for node in graph if node.name in names}
    return WeightOnlyPlan(weights=plans, layers=chosen, skipped=tuple(skipped))


def _tables(
    graph: ir.Graph, reason_to_skip: Callable[[ir.Node], str | None]
) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Yields embedding tables with the nodes that pick rows of them; only Gemm may read the same weights."""
    for value in graph.initializers.values():
        stored = value.const_value
        if not is_constant(value) or stored is None or stored.dtype != ir.DataType.FLOAT or value.is_graph_output():
            continue
        if len(stored.shape) != 2 or stored.nbytes < _SMALLEST_TABLE_BYTES:
            continue
        gathers = [use.node for use in value.uses() if use.idx == 0 and reads_rows(use.node)]
        others = [use.node for use in value.uses() if use.node not in gathers]
        if not gathers or not all(is_transposed(node) for node in others):
            continue
        if all(node.graph is graph and reason_to_skip(node) is None for node in gathers):
            yield value, gathers


def _reason_by_form(node: ir.Node, readers: dict[ir.Value, list[ir.Node]]) -> str | None:
    if node.op_type in _OTHERS:
        return _OTHERS[node.op_type]
    weight = node.inputs[1]
    if weight is None or not is_constant(weight):
        return "its second factor is computed as the model runs"
    if weight.shape is None or len(weight.shape) != 2 or 0 in weight.shape.numpy():
        return "its weights are no matrix"
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weights are {weight.dtype}, not float32"
    if weight in readers and has_rows_of_outputs(readers[weight][0]) != has_rows_of_outputs(node):
        return "another layer reads the same weights the other way round"
    return product_reason(node)
