"""Writes a plan into the graph: QuantizeLinear and DequantizeLinear around what runs on integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.affine import AffineParams
from calib.granularity import PerChannel
from qtool.passes.constants import add_constant, constant_array
from qtool.placement.operators import OPERATORS
from qtool.plan import ActivationPlan, Plan
from qtool.weights.round_to_nearest import QuantizedWeight, quantize_bias


def insert_qdq(
    model: ir.Model, plan: Plan, activations: Mapping[str, AffineParams], weights: Mapping[str, QuantizedWeight]
) -> ir.Model:
    """Quantizes ``model`` in place as ``plan`` says, and returns it.

    Args:
        model: a prepared float model.
        plan: what to quantize.
        activations: parameters by the name of every ``source`` in the plan.
        weights: integers by the name of every weight in the plan.
    """
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    nodes = {node.name: node for node in graph}
    for node_name, bias in plan.biases.items():
        weight = weights[bias.weight]
        source = plan.activations[bias.activation].source
        _insert_bias(graph, nodes[node_name], float(activations[source].scale), weight)
    for tensor, weight_plan in plan.weights.items():
        _insert_weight(graph, values[tensor], weights[tensor], frozenset(weight_plan.nodes))
    for tensor, activation in plan.activations.items():
        _insert_pair(graph, values[tensor], activation, activations[activation.source])
    return model


def _insert_bias(graph: ir.Graph, node: ir.Node, input_scale: float, weight: QuantizedWeight) -> None:
    value = node.inputs[2]
    array = constant_array(value)
    if value is None or array is None:
        raise AssertionError("the placement plans constant biases only")
    per_channel = isinstance(weight.params.granularity, PerChannel)
    channels = weight.params.scale.size if per_channel else None
    flat = array.reshape(-1) if channels is None else np.broadcast_to(array.reshape(-1), (channels,))
    integers, scale = quantize_bias(flat, weight.params.scale, input_scale)
    name = f"{node.name}_bias"
    inputs = [add_constant(graph, f"{name}_quantized", integers), add_constant(graph, f"{name}_scale", scale)]
    dequantize = ir.node(
        "DequantizeLinear", inputs, {"axis": 0} if per_channel else None, name=f"{name}_DequantizeLinear"
    )
    _describe(dequantize.outputs[0], f"{name}_dequantized", ir.Shape(integers.shape))
    graph.insert_before(node, dequantize)
    node.replace_input_with(2, dequantize.outputs[0])
    _drop_unused(graph, value)


def _insert_weight(graph: ir.Graph, value: ir.Value, weight: QuantizedWeight, readers: frozenset[str]) -> None:
    uses = [use for use in value.uses() if use.node.name in readers and _is_data(use.node, use.idx)]
    inputs = [
        add_constant(graph, f"{value.name}_quantized", weight.integers),
        add_constant(graph, f"{value.name}_scale", weight.params.scale),
        add_constant(graph, f"{value.name}_zero_point", weight.params.zero_point),
    ]
    granularity = weight.params.granularity
    axis = {"axis": granularity.axis} if isinstance(granularity, PerChannel) else None
    dequantize = ir.node("DequantizeLinear", inputs, axis, name=f"{value.name}_DequantizeLinear")
    _describe(dequantize.outputs[0], f"{value.name}_dequantized", value.shape)
    first = min((use.node for use in uses), key=list(graph).index)
    graph.insert_before(first, dequantize)
    for use in uses:
        use.node.replace_input_with(use.idx, dequantize.outputs[0])
    _drop_unused(graph, value)


def _insert_pair(graph: ir.Graph, value: ir.Value, plan: ActivationPlan, params: AffineParams) -> None:
    name = plan.tensor
    uses = [
        use
        for use in value.uses()
        if plan.readers is None or (use.node.name in plan.readers and _is_data(use.node, use.idx))
    ]
    scale = _shared_constant(graph, f"{plan.source}_scale", params.scale)
    zero_point = _shared_constant(graph, f"{plan.source}_zero_point", params.zero_point)
    quantize = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{name}_QuantizeLinear")
    quantized = quantize.outputs[0]
    quantized.name, quantized.shape = f"{name}_quantized", value.shape
    quantized.dtype = ir.DataType.from_numpy(params.zero_point.dtype)
    dequantize = ir.node("DequantizeLinear", [quantized, scale, zero_point], name=f"{name}_DequantizeLinear")
    _describe(dequantize.outputs[0], f"{name}_dequantized", value.shape)
    maker = value.producer()
    if maker is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(maker, [quantize, dequantize])
    for use in uses:
        use.node.replace_input_with(use.idx, dequantize.outputs[0])
    if plan.readers is None and value.is_graph_output():
        # The model's output keeps its name and stays float: it is read after DequantizeLinear.
        position = list(graph.outputs).index(value)
        value.name = f"{name}_before_quantization"
        dequantize.outputs[0].name = name
        graph.outputs[position] = dequantize.outputs[0]


def _is_data(node: ir.Node, index: int) -> bool:
    positions = OPERATORS[node.op_type].data_inputs
    return positions is None or index in positions


def _shared_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    existing = graph.initializers.get(name)
    return add_constant(graph, name, array) if existing is None else existing


def _describe(value: ir.Value, name: str, shape: ir.Shape | None) -> None:
    value.name, value.shape, value.dtype = name, shape, ir.DataType.FLOAT


def _drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    if not value.uses() and not value.is_graph_output() and value.name is not None:
        graph.initializers.pop(value.name, None)
