"""Infers types and shapes as onnx-ir's pass does, in time that grows with the size of the graph only.

That pass looks for every weight in the list of inputs, which it extends by all of them.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from qtool.formats.onnx.shape_inference import REFUSALS, inferred_types

# The values of small tensors may be shapes; those of larger ones do not matter.
_LARGEST_READ_BYTES = 1000


def infer_strictly(model: ir.Model) -> bool:
    """Fills in the types and shapes of all tensors over what the graph says; none where a node contradicts its inputs.

    Args:
        model: the graph; nothing but the types and shapes of its tensors changes.

    Returns:
        Whether any changed.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(_outline(model), check_type=True, strict_mode=True, data_prop=True)
    except REFUSALS:
        return False
    modified = False
    for value, kind in inferred_types(model.graph, proto.graph):
        modified = _take_over(value, kind) or modified
    return modified


def _take_over(value: ir.Value, kind: onnx.TypeProto) -> bool:
    """Gives ``value`` the type and shape that were found; returns whether it had others."""
    changed = False
    shape, found = ir.serde.deserialize_type_proto_for_shape(kind), ir.serde.deserialize_type_proto_for_type(kind)
    if shape is not None and value.shape != shape:
        value.shape, changed = shape, True
    if found is not None and value.type != found:
        value.type, changed = found, True
    return changed


def _outline(model: ir.Model) -> onnx.ModelProto:
    """Returns the model with all weights as inputs, without the values of large ones, which are listed last then."""
    graph = model.graph
    weights, inputs = tuple(graph.initializers.values()), tuple(graph.inputs)
    large = []
    for value in weights:
        if value.const_value is not None:
            if value.shape is None:
                value.shape = ir.Shape(value.const_value.shape.numpy())
            if value.dtype is None:
                value.dtype = value.const_value.dtype
            if value.const_value.nbytes > _LARGEST_READ_BYTES:
                large.append(value)
    listed = set(inputs)
    graph.inputs.extend(value for value in weights if value not in listed)
    for value in large:
        del graph.initializers[value.name or ""]
    try:
        return ir.to_proto(model)
    finally:
        graph.inputs[:] = inputs
        for value in large:
            graph.register_initializer(value)
