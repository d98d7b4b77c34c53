"""Converts models of float16 and bfloat16 to float32, which quantization requires.

Every value of half precision is exact in float32, so weights keep their values; inputs and outputs keep their types.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qtool.graph.names import Names

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Attributes with the output type of a node.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")
# Domains whose operators support float32 wherever they support half precision.
_KNOWN_DOMAINS = ("", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml")


class HalfToFloat(ir.passes.InPlacePass):
    """Converts half precision to float32 everywhere but in a model's inputs and outputs.

    Models with operators of unknown domains are not changed, since the types that those support are unknown.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Converts weights, types and attributes, and puts Casts at both ends."""
        inner = [value for value in _values(model) if _is_half(value)]
        if not inner or any(node.domain not in _KNOWN_DOMAINS for node in model.graph.all_nodes()):
            return ir.passes.PassResult(model, modified=False)
        names = Names(model.graph)
        made_of_inputs = {cast: cast.outputs[0] for cast in _cast_inputs(model.graph, names)}
        outputs = [(place, value, value.dtype) for place, value in enumerate(model.graph.outputs) if _is_half(value)]
        for value in inner:
            _widen(value)
        for node in model.graph.all_nodes():
            if node not in made_of_inputs:
                _widen_attributes(node)
        for place, value, dtype in outputs:
            _cast_output(model.graph, place, value, dtype, names)
        _drop_idle_casts(model)
        return ir.passes.PassResult(model, modified=True)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yields every value except for the model's inputs and their unchanged copies."""
    for graph in model.graphs():
        if graph is not model.graph:
            yield from graph.inputs
        yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in model.graph.all_nodes():
        if not _is_end(node):
            yield from node.outputs


def _is_end(node: ir.Node) -> bool:
    """Returns whether a node is a Cast that this pass added at an input or output."""
    if node.op_type != "Cast" or node.domain or node.inputs[0] is None:
        return False
    source, made = node.inputs[0], node.outputs[0]
    behind_input = source.is_graph_input() and _is_half(source) and made.dtype == ir.DataType.FLOAT
    before_output = made.is_graph_output() and not made.uses() and source.dtype == ir.DataType.FLOAT
    return behind_input or before_output


def _is_half(value: ir.Value) -> bool:
    return value.dtype in _HALVES


def _cast_inputs(graph: ir.Graph, names: Names) -> list[ir.Node]:
    casts = []
    for value in graph.inputs:
        readers = [use for use in value.uses() if not _is_end(use.node)]
        if not _is_half(value) or not readers:
            continue
        cast = _cast(value, ir.DataType.FLOAT, names.free(f"{value.name}_float32"))
        for reader, position in readers:
            reader.replace_input_with(position, cast.outputs[0])
        first = next(iter(graph))
        graph.insert_before(first, cast)
        casts.append(cast)
    return casts


def _cast_output(graph: ir.Graph, place: int, value: ir.Value, dtype: ir.DataType | None, names: Names) -> None:
    producer = value.producer()
    if dtype is None or value.is_graph_input() or producer is None or _is_end(producer):
        return
    name = value.name or ""
    value.name = names.free(f"{name}_float32")
    cast = _cast(value, dtype, name)
    graph.append(cast)
    graph.outputs[place] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], attributes={"to": ir.AttrInt64("to", dtype.value)}, name=f"{name}_cast")
    made = cast.outputs[0]
    made.name, made.shape, made.type = name, value.shape, ir.TensorType(dtype)
    return cast


def _widen(value: ir.Value) -> None:
    # A new type, as clones of the graph share the old one.
    is_sequence = isinstance(value.type, ir.SequenceType)
    value.type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)) if is_sequence else ir.TensorType(ir.DataType.FLOAT)
    if value.const_value is not None:
        value.const_value = _widened(value.const_value)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALVES:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
        elif name not in _TYPE_ATTRIBUTES or attribute.type != ir.AttributeType.INT or _is_end(node):
            continue
        elif attribute.as_int() in _HALVES:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT.value)


def _widened(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The same values in float32, computed when they are used."""

    def values() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(
        values, dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name, cache=True
    )


def _drop_idle_casts(model: ir.Model) -> None:
    """Removes Casts that have become ones of float32 to float32."""
    for node in list(model.graph.all_nodes()):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "Cast" or node.domain or source is None or node.graph is None:
            continue
        made = node.outputs[0]
        if source.dtype == made.dtype == ir.DataType.FLOAT and not made.is_graph_output():
            for reader, position in list(made.uses()):
                reader.replace_input_with(position, source)
            node.graph.remove(node, safe=True)
