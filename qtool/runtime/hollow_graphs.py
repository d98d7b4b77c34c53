"""Gives large graphs to onnxruntime without their weights, to see what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array
from qtool.runtime.shared_initializers import may_be_handed_over, place_holder, read_in_place

_SMALLEST_LEFT_OUT_BYTES = 1 << 20


def hollow(model: ir.Model) -> tuple[bytes, Mapping[str, Array]]:
    """Returns ``model`` as bytes, and zeros for large weights that it only names; ``model`` is not modified.

    Zeros that are only read take no memory. Float weights of products and tables become inputs.
    """
    clone = model.clone()
    graph = clone.graph
    zeros = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not may_be_handed_over(tensor, smallest_bytes=_SMALLEST_LEFT_OUT_BYTES):
            continue
        if tensor.dtype == ir.DataType.FLOAT and read_in_place(value) and not value.is_graph_output():
            del graph.initializers[name]
            value.const_value, value.shape = None, ir.Shape(tensor.shape.numpy())
            value.type = ir.TensorType(tensor.dtype)
            if value not in graph.inputs:
                graph.inputs.append(value)
        elif value.uses():
            zeros[name] = np.zeros(tensor.shape.numpy(), tensor.dtype.numpy())
            value.const_value = place_holder(tensor, name)
    return ir.to_proto(clone).SerializeToString(), zeros
