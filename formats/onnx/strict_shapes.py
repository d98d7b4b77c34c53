"""Infers types and shapes as onnx-ir's pass does, in time that grows with the size of the graph only.

That pass looks for every weight in the list of inputs, which it extends by all of them.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from qtool.formats.onnx.shape_inference import REFUSALS

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
    for graph, inferred in zip(model.graphs(), ir.from_proto(proto).graphs(), strict=False):
        found = ir.convenience.create_value_mapping(inferred)
        for name, value in ir.convenience.create_value_mapping(graph).items():
            modified = (name in found and _take_over(value, found[name])) or modified
    return modified


def _take_over(value: ir.Value, found: ir.Value) -> bool:
    """Gives ``value`` the type and shape that were found; returns whether it had others."""
    changed = False
    if found.shape is not None and value.shape != found.shape:
        value.shape, changed = found.shape, True
    if found.dtype is not None and value.dtype != found.dtype:
        value.dtype, changed = found.dtype, True
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
