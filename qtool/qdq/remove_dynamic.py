"""Takes layers that quantize their activations as they run out of a graph: they become products of floats again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from qtool.graph.constants import add_constant, constant_array, is_constant, sole_consumer
from qtool.graph.names import Names
from qtool.graph.weight_records import record_steps
from qtool.qdq.recurrent_layers import RemoveRecurrent

_FLOAT_OPERATORS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


class RemoveDynamic(ir.passes.InPlacePass):
    """Replaces DynamicQuantizeLinear → MatMulInteger → Cast → Mul by MatMul with the dequantized weights.

    ConvInteger becomes Conv alike. It takes what ``insert_dynamic`` writes and what onnxruntime's own quantizer does,
    which also multiplies two tensors that are both computed. DynamicQuantizeLSTM becomes LSTM.
    Integer weights that several layers share become one float tensor.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every layer of that form; what is left is still MatMulInteger or ConvInteger."""
        remover = _Remover(model.graph)
        modified = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type in _FLOAT_OPERATORS:
                modified = remover.replace(node) or modified
        modified = RemoveRecurrent()(model).modified or modified
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


class _Remover:
    """Replaces layers of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = Names(graph)
        self._floats: dict[tuple[ir.Value | None, ...], ir.Value] = {}

    def replace(self, product: ir.Node) -> bool:
        """Turns one layer back; returns whether it has the form for that."""
        quantize = None if product.inputs[0] is None else product.inputs[0].producer()
        if quantize is None or quantize.op_type != "DynamicQuantizeLinear":
            return False
        cast = sole_consumer(product.outputs[0])
        result = None if cast is None or cast.op_type != "Cast" else sole_consumer(cast.outputs[0])
        if cast is None or result is None or result.op_type != "Mul":
            return False
        scale = _second_scale(result, cast.outputs[0], quantize.outputs[1])
        weight = None if scale is None else self._second_factor(product, scale)
        if weight is None:
            return False
        floats = _FLOAT_OPERATORS[product.op_type]
        matmul = ir.node(floats, [quantize.inputs[0], weight], product.attributes, name=product.name)
        ir.convenience.replace_nodes_and_values(
            self._graph, product, [product, cast, result], [matmul], result.outputs, matmul.outputs
        )
        return True

    def _second_factor(self, product: ir.Node, scale: ir.Value) -> ir.Value | None:
        """Returns the dequantized values of a product's second input."""
        producer = scale.producer()
        if producer is not None:
            computed = producer.op_type == "DynamicQuantizeLinear" and product.inputs[1] is producer.outputs[0]
            return producer.inputs[0] if computed and scale is producer.outputs[1] else None
        return self._weight(product, scale)

    def _weight(self, product: ir.Node, scale: ir.Value) -> ir.Value | None:
        stored = product.inputs[1]
        zero = product.inputs[3] if len(product.inputs) > 3 else None
        turn = None if stored is None else stored.producer()
        if turn is not None and turn.op_type == "Transpose":
            stored = turn.inputs[0]
        constants = (stored, scale) if zero is None else (stored, scale, zero)
        if stored is None or not all(is_constant(value) for value in constants):
            return None
        if product.op_type == "ConvInteger" and any(_count(value) != 1 for value in constants[1:]):
            return None  # several are of channels, which are not the last axis
        key = (stored, scale, zero)
        if key not in self._floats:
            floats = _dequantized(constant_array(stored), constant_array(scale), constant_array(zero))
            name = (stored.name or "constant").removesuffix("_quantized")
            self._floats[key] = add_constant(self._graph, name, floats, names=self._names)
            record_steps(self._floats[key], stored)
        if turn is None:
            return self._floats[key]
        node = ir.node(
            "Transpose", [self._floats[key]], turn.attributes, name=self._names.for_node(f"{product.name}_Transpose")
        )
        node.outputs[0].name = self._names.free(f"{product.name}_weight")
        self._graph.insert_before(product, node)
        return node.outputs[0]


def _count(value: ir.Value) -> int:
    array = constant_array(value)
    return 0 if array is None else int(array.size)


def _second_scale(result: ir.Node, cast: ir.Value, input_scale: ir.Value) -> ir.Value | None:
    """Returns the other scale in ``cast * (input_scale * other)``, whose factors may stand in any order."""
    scales = _other_factor(result, cast)
    producer = None if scales is None else scales.producer()
    return None if producer is None or producer.op_type != "Mul" else _other_factor(producer, input_scale)


def _other_factor(product: ir.Node, factor: ir.Value) -> ir.Value | None:
    first, second = product.inputs
    if first is factor:
        return second
    return first if second is factor else None


def _dequantized(
    integers: npt.NDArray[Any] | None, scale: npt.NDArray[Any] | None, zero: npt.NDArray[Any] | None
) -> npt.NDArray[np.float32]:
    """Computes (q - zero_point) * scale in float32; one scale, or one a column, which is the last axis."""
    if integers is None or scale is None:
        raise AssertionError("only constants come here")
    steps = integers.astype(np.float32) - (0 if zero is None else zero.astype(np.float32))
    return np.asarray(steps * scale, np.float32)
