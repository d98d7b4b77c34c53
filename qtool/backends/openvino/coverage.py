"""Coverage: reads from the graph that OpenVINO executes which nodes of a QDQ model really run on integers."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.backends.coverage import Coverage, NodeCoverage
from qtool.backends.openvino.execution import IN_OPENVINO
from qtool.backends.openvino.float_reasons import computes_integers, reads_integers, reason_for_float
from qtool.backends.openvino.session import ExecutedLayer
from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.graph.constants import is_constant

_INTEGERS = ("u8", "i8")
# Layers of the executed graph that stand for no operator of the model.
_CONVERSIONS = ("Reorder", "FakeQuantize", "Convert", "Const")


def openvino_coverage(model: ir.Model) -> Coverage:
    """Opens ``model`` in OpenVINO and finds each of its quantizable nodes in the graph that it executes.

    Nodes without a name get one. Quantizable are Conv, ConvTranspose, Gemm and MatMul, and operators between
    dequantized tensors that OpenVINO has integer kernels for.

    Raises:
        UsageError: OpenVINO is not installed.
        RuntimeRefusedError: it does not load the model.
    """
    common.NameFixPass()(model)
    with IN_OPENVINO.open(model) as session:
        layers = session.executed()
    found = layers_by_node(layers)
    nodes = tuple(_node_coverage(node, found) for node in model.graph if _is_quantizable(node))
    return Coverage(nodes=nodes, runtime="openvino")


def layers_by_node(layers: tuple[ExecutedLayer, ...]) -> dict[str, ExecutedLayer]:
    """Returns the layer that runs each node, by the node's name, or by what OpenVINO calls a part of it."""
    found: dict[str, ExecutedLayer] = {}
    for layer in layers:
        if layer.kind in _CONVERSIONS:
            continue
        for original in layer.originals:
            found.setdefault(original, layer)
            # A node that was taken apart: node_linear/WithoutBiases, node_MatMul/DequantizationMultiply.
            head, _, tail = original.rpartition("/")
            while head and tail.startswith(("WithoutBiases", "Dequantization", "fq_")):
                found.setdefault(head, layer)
                head, _, tail = head.rpartition("/")
    return found


def _is_quantizable(node: ir.Node) -> bool:
    operator = OPERATORS.get(node.op_type) if node.domain == "" else None
    if (node.domain == "" and node.op_type == "ConvTranspose") or computes_integers(node):
        return True
    if operator is None or operator.kind is Kind.CLAMPING:
        return False
    if operator.kind is Kind.LAYER:
        return True
    positions = range(len(node.inputs)) if operator.data_inputs is None else operator.data_inputs
    data = [node.inputs[index] for index in positions if index < len(node.inputs)]
    producers = [value.producer() for value in data if value is not None]
    if not producers or any(producer is None or producer.op_type != "DequantizeLinear" for producer in producers):
        return False
    return any(producer is not None and not is_constant(producer.inputs[0]) for producer in producers)


def _node_coverage(node: ir.Node, found: Mapping[str, ExecutedLayer]) -> NodeCoverage:
    layer = layer_of(node, found)
    kernel = None
    # A fused kernel has one precision for all of its nodes, also for those that read floats.
    if layer is not None and layer.precision in _INTEGERS and reads_integers(node):
        kernel = f"{layer.kind} {layer.precision}"
    elif layer is None and OPERATORS.get(node.op_type) is not None and OPERATORS[node.op_type].kind is Kind.MOVING:
        # A node that only renames its values, such as a Reshape to the same shape, disappears.
        kernel = "removed"
    missed = None if kernel is not None else reason_for_float(node, layer)
    return NodeCoverage(
        node=node.name or "",
        operator=node.op_type,
        kernel=kernel,
        reason=None if missed is None else missed.reason,
        fix=None if missed is None else missed.fix,
    )


def layer_of(node: ir.Node, found: Mapping[str, ExecutedLayer]) -> ExecutedLayer | None:
    """Returns the layer that runs a node; one whose output the model returns is called as that output."""
    names = [node.name or "", *(output.name or "" for output in node.outputs if output.is_graph_output())]
    return next((found[name] for name in names if name in found), None)
