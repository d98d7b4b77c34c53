"""Finds the bias of a layer in a graph by the layer's weight, since passes change the values of biases."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from qtool.graph.constants import is_constant, sole_consumer
from qtool.qdq.packed_integers import is_packed

_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
# Its place among the inputs of MatMulNBits.
BIAS_OF_BLOCKS = 5
# Operators between an integer product and the addition of its bias.
_AFTER_INTEGERS = frozenset({"Cast", "Mul"})


def layers_of(weight: ir.Value, nodes: tuple[ir.Node, ...] | None) -> Iterator[ir.Node]:
    """Yields the layers that multiply with a stored weight, its integers or their dequantized form.

    Args:
        weight: the initializer.
        nodes: the readers to consider; None for all.
    """
    for use in weight.uses():
        behind = use.node.op_type == "Reshape" and all(is_packed(each.node) for each in use.node.outputs[0].uses())
        if behind:
            yield from layers_of(use.node.outputs[0], nodes)
            continue
        if nodes is not None and use.node not in nodes:
            continue
        if use.node.op_type in ("DequantizeLinear", "Identity", "Transpose"):
            yield from layers_of(use.node.outputs[0], None)
        else:
            yield use.node


def bias_input(layer: ir.Node) -> tuple[ir.Node, int] | None:
    """Returns the node and the index of its input that is the bias of ``layer``; None where none is stored."""
    if layer.op_type in _WITH_BIAS:
        return (layer, 2) if len(layer.inputs) > 2 and _is_stored(layer.inputs[2]) else None
    if len(layer.inputs) > BIAS_OF_BLOCKS and layer.op_type == "MatMulNBits":
        return (layer, BIAS_OF_BLOCKS) if _is_stored(layer.inputs[BIAS_OF_BLOCKS]) else None
    if layer.op_type not in ("MatMul", "MatMulInteger", "MatMulNBits"):
        return None
    reader = sole_consumer(layer.outputs[0])
    while reader is not None and layer.op_type == "MatMulInteger" and reader.op_type in _AFTER_INTEGERS:
        reader = sole_consumer(reader.outputs[0])
    if reader is None or reader.op_type != "Add":
        return None
    return next(((reader, index) for index, value in enumerate(reader.inputs) if _is_stored(value)), None)


def _is_stored(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return is_constant(producer.inputs[0])
    return is_constant(value)
