"""Infers types and shapes of the tensors in a graph, in time that grows with its size only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

from qtool.formats.onnx.map_types import holds_maps

# The values of small tensors may be shapes; those of larger ones do not matter.
_LARGEST_READ_BYTES = 1000
# What the onnx package raises where it cannot infer, or where the graph cannot be written.
REFUSALS = (
    RuntimeError,
    ValueError,
    TypeError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
)


def infer_shapes(model: ir.Model) -> None:
    """Fills in the types and shapes that the onnx package can infer, in subgraphs too; nothing where it fails.

    Args:
        model: the graph; nothing but the types and shapes of its tensors changes.
    """
    try:
        with _without_weights(model):
            proto = ir.to_proto(model)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except REFUSALS:
        return
    for value, kind in inferred_types(model.graph, inferred.graph):
        value.type = ir.serde.deserialize_type_proto_for_type(kind) or value.type
        value.shape = ir.serde.deserialize_type_proto_for_shape(kind) or value.shape


def inferred_types(graph: ir.Graph, inferred: onnx.GraphProto) -> Iterator[tuple[ir.Value, onnx.TypeProto]]:
    """Yields what nodes compute, in subgraphs too, with its type in ``inferred``, the same graph with more types.

    Tensors without a type there are left out, and so are maps. What goes into subgraphs is included.
    """
    found = {info.name: info.type for info in (*inferred.value_info, *inferred.output)}
    for node, proto in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            kind = found.get(value.name or "")
            if kind is not None and not holds_maps(kind):
                yield value, kind
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                subgraph = node.attributes[attribute.name].as_graph()
                for value, info in zip(subgraph.inputs, attribute.g.input, strict=True):
                    if not holds_maps(info.type):
                        yield value, info.type
                yield from inferred_types(subgraph, attribute.g)


@contextmanager
def _without_weights(model: ir.Model) -> Iterator[None]:
    """Lists weights as inputs, without their values, until the block ends."""
    graph = model.graph
    large = {
        name: value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > _LARGEST_READ_BYTES
    }
    kept = list(graph.inputs)
    listed = set(kept)
    for name, value in large.items():
        del graph.initializers[name]
        if value.const_value is not None:
            value.shape = value.shape or ir.Shape(value.const_value.shape.numpy())
            value.dtype = value.dtype or value.const_value.dtype
    graph.inputs.extend(value for value in large.values() if value not in listed)
    try:
        yield
    finally:
        graph.inputs[:] = kept
        for value in large.values():
            graph.register_initializer(value)
