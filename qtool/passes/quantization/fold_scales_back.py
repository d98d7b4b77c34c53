"""Folds scalar factors of a tensor into the weights of the layer that produces it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, is_constant, sole_consumer
from qtool.graph.names import Names
from qtool.graph.weight_records import Scaled, record_steps
from qtool.passes.quantization.constant_chains import constant_operand

_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


class FoldScalesBack(ir.passes.InPlacePass):
    """Folds layer(x) * c into the layer, past products with other tensors and nodes that move values.

    Attention divides its scores, the products of queries and keys, by the root of their width. The layer that
    computes the queries can include that factor at no cost.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds every such factor for which there is a layer."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            if node.op_type == "Mul" and node.domain == "" and _fold(model.graph, node, names):
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _fold(graph: ir.Graph, node: ir.Node, names: Names) -> bool:
    found = constant_operand(node)
    if found is None or found[1].size != 1 or found[1].dtype != np.float32:
        return False
    source, factor = found[0], float(found[1].reshape(()))
    # More dimensions of the number would be dimensions of the product, too.
    if not np.isfinite(factor) or (found[1].ndim and (source.shape is None or found[1].ndim > len(source.shape))):
        return False
    stored = _weights_behind(source)
    if stored is None:
        return False
    for reader, index in stored:
        value = reader.inputs[index]
        array = constant_array(value)
        if value is None or array is None:
            raise AssertionError("only constants were chosen")
        scaled = (array.astype(np.float64) * factor).astype(np.float32)
        made = add_constant(graph, f"{value.name}_scaled", scaled, names=names)
        record_steps(made, value, Scaled(factors=np.asarray(factor), outputs=np.asarray(factor)))
        reader.replace_input_with(index, made)
    output = node.outputs[0]
    source.name, source.type, source.shape = output.name, output.type, output.shape
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


def _weights_behind(value: ir.Value) -> tuple[tuple[ir.Node, int], ...] | None:
    """Returns the nodes, and which of their inputs, that a number has to multiply for ``value`` to be multiplied by it.

    None where there is no layer, or another node reads a tensor in between.
    """
    producer = value.producer()
    if producer is None or producer.domain != "" or sole_consumer(value) is None:
        return None
    first = producer.inputs[0] if producer.inputs else None
    if producer.op_type in _MOVING:
        return None if first is None else _weights_behind(first)
    if producer.op_type == "Gemm":
        return _own(producer, range(1, len(producer.inputs)))
    if producer.op_type == "MatMul":
        if is_constant(producer.inputs[1]):
            return _own(producer, (1,))
        return next(_found_behind(producer), None)
    if producer.op_type == "Add":
        return _biased(producer)
    return None


def _found_behind(product: ir.Node) -> Iterator[tuple[tuple[ir.Node, int], ...]]:
    for factor in product.inputs:
        found = None if factor is None else _weights_behind(factor)
        if found is not None:
            yield found


def _biased(addition: ir.Node) -> tuple[tuple[ir.Node, int], ...] | None:
    for index in (0, 1):
        other = addition.inputs[1 - index]
        if is_constant(addition.inputs[index]) and other is not None and not is_constant(other):
            layer, bias = _weights_behind(other), _own(addition, (index,))
            return None if layer is None or bias is None else (*layer, *bias)
    return None


def _own(node: ir.Node, indices: range | tuple[int, ...]) -> tuple[tuple[ir.Node, int], ...] | None:
    """Returns the inputs where all of them are float32 constants without other readers."""
    for index in indices:
        value = node.inputs[index]
        array = constant_array(value)
        if value is None or array is None or array.dtype != np.float32 or len(value.uses()) != 1:
            return None
    return tuple((node, index) for index in indices)
