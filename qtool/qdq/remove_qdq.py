"""Removes QuantizeLinear and DequantizeLinear from a graph: stored integers become their dequantized values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from qtool.backends.registry import unfinish
from qtool.graph.constants import add_constant, constant_array, integer_attribute, is_constant
from qtool.graph.names import Names
from qtool.graph.weight_records import record_steps
from qtool.qdq.insert_qdq import CONTRIBUTED
from qtool.qdq.restore_tables import restore_table

# Operators whose outputs are never below zero, so that the clamp at zero of the Q after them has no effect.
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "HardSigmoid", "Exp", "Abs", "Sqrt", "ReduceL2", "ReduceSumSquare")
# Operators that only move values: what feeds them decides about their sign.
_MOVING = ("MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


class RemoveQdq(ir.passes.InPlacePass):
    """Undoes static quantization in QDQ form.

    Some quantizers drop a ReLU whose effect the grid of the Q behind it has as well: its zero point is the lowest
    integer. Such a clamp at zero is written out as a ReLU again, unless the value cannot be negative anyway.
    """

    def __init__(self, *, keeps_clamps: bool = True) -> None:
        """Takes whether a grid that begins at zero may represent a ReLU; in qtool's own graphs it never does."""
        super().__init__()
        self._keeps_clamps = keeps_clamps

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Removes every supported pair, and what backends added; others stay QuantizeLinear and DequantizeLinear."""
        modified = False
        unfinish(model)
        names = Names(model.graph)
        for node in list(model.graph):
            if node.domain in ("", CONTRIBUTED) and node.op_type == "DequantizeLinear":
                modified = self._remove(model.graph, node, names) or modified
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)

    def _remove(self, graph: ir.Graph, dequantize: ir.Node, names: Names) -> bool:
        source, output = dequantize.inputs[0], dequantize.outputs[0]
        if source is None:
            return False
        if is_constant(source):
            floats = _dequantized(dequantize)
            if floats is None:
                return False
            name = (source.name or "constant").removesuffix("_quantized")
            stored = add_constant(graph, name, floats, names=names)
            record_steps(stored, source)
            _replace(graph, output, stored, names)
            return True
        quantize = source.producer()
        if quantize is not None and quantize.op_type == "Gather":
            return restore_table(graph, quantize, dequantize, names)
        if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.inputs[0] is None:
            return False
        original = quantize.inputs[0]
        if self._keeps_clamps and _clamps_at_zero(quantize) and not _never_negative(original):
            original = _with_relu(graph, quantize, original, names)
        _replace(graph, output, original, names)
        return True


def _dequantized(node: ir.Node) -> npt.NDArray[np.float32] | None:
    """Computes DequantizeLinear on constants: (q - zero_point) * scale, per tensor, per axis or in blocks."""
    integers, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
    if integers is None or scale is None:
        return None
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = np.zeros(scale.shape) if zero_value is None else constant_array(zero_value)
    if zero is None:
        return None
    axis = integer_attribute(node, "axis", 1)
    block = integer_attribute(node, "block_size", 0)

    def spread(parameter: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        wide = parameter.astype(np.float64)
        if wide.size == 1:
            return wide.reshape(())
        if block:
            return np.repeat(wide, block, axis=axis).take(range(integers.shape[axis]), axis=axis)
        shape = [1] * integers.ndim
        shape[axis] = -1
        return wide.reshape(shape)

    # float32 times float32, as the operator does it
    steps = (integers.astype(np.float64) - spread(zero)).astype(np.float32)
    floats: npt.NDArray[np.float32] = steps * spread(scale).astype(np.float32)
    return floats


def _clamps_at_zero(quantize: ir.Node) -> bool:
    zero_value = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    zero = np.zeros((), np.uint8) if zero_value is None else constant_array(zero_value)
    return zero is not None and zero.dtype.kind in "iu" and bool((zero == np.iinfo(zero.dtype).min).all())


def _never_negative(value: ir.Value) -> bool:
    producer = value.producer()
    while producer is not None and producer.op_type in (*_MOVING, "QuantizeLinear", "DequantizeLinear"):
        if producer.op_type == "QuantizeLinear" and _clamps_at_zero(producer):
            return True
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    if producer is None:
        return False
    if producer.op_type == "Clip":
        low = constant_array(producer.inputs[1]) if len(producer.inputs) > 1 else None
        return low is not None and bool((low >= 0).all())
    return producer.op_type in _NEVER_NEGATIVE


def _with_relu(graph: ir.Graph, quantize: ir.Node, value: ir.Value, names: Names) -> ir.Value:
    relu = ir.node("Relu", [value], name=names.for_node(f"{quantize.name}_clamp"))
    relu.outputs[0].name = names.free(f"{value.name}_clamped")
    relu.outputs[0].shape, relu.outputs[0].type = value.shape, value.type
    graph.insert_before(quantize, relu)
    return relu.outputs[0]


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value, names: Names) -> None:
    """Lets every reader of ``old`` read ``new``; an output of the model keeps its name."""
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)
    if not old.is_graph_output():
        return
    name = old.name
    old.name = names.free(f"{name}_dequantized")
    if new.is_graph_output() or new.is_graph_input() or new.is_initializer():
        identity = ir.node("Identity", [new], name=names.for_node(f"{name}_output"))
        identity.outputs[0].shape, identity.outputs[0].type = old.shape, old.type
        graph.append(identity)
        new = identity.outputs[0]
    new.name = name
    # An output of a graph needs a type, and inner tensors often have none in the file.
    new.type, new.shape = new.type or old.type, old.shape if new.shape is None else new.shape
    for position, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[position] = new
