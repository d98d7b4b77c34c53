"""Applies a plan to the graph: inserts QuantizeLinear and DequantizeLinear (QDQ format)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS
from qtool.calib.affine import AffineParams
from qtool.calib.granularity import PerChannel
from qtool.graph.constants import add_constant, constant_array
from qtool.graph.names import Names
from qtool.graph.weight_records import record_steps
from qtool.plan import ActivationPlan, Plan
from qtool.weights.round_to_nearest import QuantizedWeight, quantize_bias

CONTRIBUTED = "com.microsoft"
OPSET_WITH_16_BITS = 21


def conversion_domain(kind: np.dtype[Any], opset: int) -> str:
    """Returns whose Q and DQ take a type of integers: those of 16 bits are onnxruntime's before opset 21."""
    wide = kind.itemsize == np.dtype(np.int16).itemsize
    return CONTRIBUTED if wide and opset < OPSET_WITH_16_BITS else ""


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
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    nodes = {node.name: node for node in model.graph}
    writer = _Writer(model.graph, opset=model.opset_imports.get("", 1))
    for node_name, bias in plan.biases.items():
        source = plan.activations[bias.activation].source
        writer.bias(nodes[node_name], float(activations[source].scale), weights[bias.weight])
    for tensor, weight_plan in plan.weights.items():
        writer.weight(values[tensor], weights[tensor], frozenset(weight_plan.nodes))
    for tensor, activation in plan.activations.items():
        writer.pair(values[tensor], activation, activations[activation.source])
    if any(node.domain == CONTRIBUTED for node in model.graph):
        model.opset_imports.setdefault(CONTRIBUTED, 1)
    return model


class _Writer:
    """Adds nodes and constants to one graph, under names that are free in it."""

    def __init__(self, graph: ir.Graph, *, opset: int) -> None:
        self._graph = graph
        self._opset = opset
        self._names = Names(graph)
        self._order = {node: position for position, node in enumerate(graph)}
        self._shared: dict[str, tuple[ir.Value, ir.Value]] = {}

    def bias(self, node: ir.Node, input_scale: float, weight: QuantizedWeight) -> None:
        """Stores the bias of ``node`` as int32 on the scale of its products."""
        value = node.inputs[2]
        array = constant_array(value)
        if value is None or array is None:
            raise AssertionError("the placement plans constant biases only")
        per_channel = isinstance(weight.params.granularity, PerChannel)
        flat = array.reshape(-1)
        if per_channel:
            flat = np.broadcast_to(flat, (weight.params.scale.size,))
        integers, scale = quantize_bias(flat, weight.params.scale, input_scale)
        name = f"{node.name}_bias"
        inputs = [self._constant(f"{name}_quantized", integers), self._constant(f"{name}_scale", scale)]
        axis = {"axis": 0} if per_channel else None
        dequantize = ir.node("DequantizeLinear", inputs, axis, name=self._names.for_node(f"{name}_DequantizeLinear"))
        self._describe(dequantize.outputs[0], f"{name}_dequantized", ir.Shape(integers.shape))
        self._graph.insert_before(node, dequantize)
        node.replace_input_with(2, dequantize.outputs[0])
        self._drop_unused(value)

    def weight(self, value: ir.Value, weight: QuantizedWeight, readers: frozenset[str]) -> None:
        """Lets ``readers`` read the integers of a constant instead of its floats."""
        uses = [use for use in value.uses() if use.node.name in readers and _is_data(use.node, use.idx)]
        inputs = [
            self._constant(f"{value.name}_quantized", weight.integers),
            self._constant(f"{value.name}_scale", weight.params.scale),
            self._constant(f"{value.name}_zero_point", weight.params.zero_point),
        ]
        record_steps(inputs[0], value)
        granularity = weight.params.granularity
        axis = {"axis": granularity.axis} if isinstance(granularity, PerChannel) else None
        dequantize = ir.node(
            "DequantizeLinear",
            inputs,
            axis,
            domain=conversion_domain(weight.integers.dtype, self._opset),
            name=self._names.for_node(f"{value.name}_DequantizeLinear"),
        )
        self._describe(dequantize.outputs[0], f"{value.name}_dequantized", value.shape)
        first = min((use.node for use in uses), key=lambda node: self._order[node])
        self._graph.insert_before(first, dequantize)
        for use in uses:
            use.node.replace_input_with(use.idx, dequantize.outputs[0])
        self._drop_unused(value)

    def pair(self, value: ir.Value, plan: ActivationPlan, params: AffineParams) -> None:
        """Puts QuantizeLinear and DequantizeLinear between a value and those of its readers that the plan names."""
        name = plan.tensor
        uses = [
            use
            for use in value.uses()
            if plan.readers is None or (use.node.name in plan.readers and _is_data(use.node, use.idx))
        ]
        scale, zero_point = self._shared_params(plan.source, params)
        domain = conversion_domain(params.zero_point.dtype, self._opset)
        quantize = ir.node(
            "QuantizeLinear",
            [value, scale, zero_point],
            domain=domain,
            name=self._names.for_node(f"{name}_QuantizeLinear"),
        )
        quantized = quantize.outputs[0]
        quantized.name, quantized.shape = self._names.free(f"{name}_quantized"), value.shape
        quantized.dtype = ir.DataType.from_numpy(params.zero_point.dtype)
        dequantize = ir.node(
            "DequantizeLinear",
            [quantized, scale, zero_point],
            domain=domain,
            name=self._names.for_node(f"{name}_DequantizeLinear"),
        )
        self._describe(dequantize.outputs[0], f"{name}_dequantized", value.shape)
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], [quantize, dequantize])
        else:
            self._graph.insert_after(producer, [quantize, dequantize])
        for use in uses:
            use.node.replace_input_with(use.idx, dequantize.outputs[0])
        if plan.readers is None and value.is_graph_output():
            # The model's output keeps its name and stays float: it is read after DequantizeLinear.
            value.name = self._names.free(f"{name}_before_quantization")
            dequantize.outputs[0].name = name
            for position, output in enumerate(self._graph.outputs):
                if output is value:
                    self._graph.outputs[position] = dequantize.outputs[0]

    def _shared_params(self, source: str, params: AffineParams) -> tuple[ir.Value, ir.Value]:
        """Returns the scale and zero point that every tensor with this source reads."""
        if source not in self._shared:
            self._shared[source] = (
                self._constant(f"{source}_scale", params.scale),
                self._constant(f"{source}_zero_point", params.zero_point),
            )
        return self._shared[source]

    def _constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        return add_constant(self._graph, name, array, names=self._names)

    def _describe(self, value: ir.Value, name: str, shape: ir.Shape | None) -> None:
        value.name, value.shape, value.dtype = self._names.free(name), shape, ir.DataType.FLOAT

    def _drop_unused(self, value: ir.Value) -> None:
        if not value.uses() and not value.is_graph_output() and value.name is not None:
            self._graph.initializers.pop(value.name, None)


def _is_data(node: ir.Node, index: int) -> bool:
    operator = OPERATORS.get(node.op_type)
    return operator is None or operator.data_inputs is None or index in operator.data_inputs
