"""Gives large graphs to onnxruntime without their weights, to see what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array
from qtool.formats.onnx.map_types import load_model
from qtool.graph.unpacked_product import is_unpacked_product
from qtool.runtime.parts import needs_parts
from qtool.runtime.session import Session
from qtool.runtime.shared_initializers import may_be_handed_over, place_holder, read_in_place

_SMALLEST_LEFT_OUT_BYTES = 1 << 20
# A product with weights in blocks, which no pass rewrites.
_PACKED = "MatMulNBits"


def check_loads(path: Path) -> None:
    """Passes when onnxruntime loads the model in ``path``; a large one without its weights.

    Raises:
        RuntimeRefusedError: it does not.
    """
    model = load_model(path)
    if not needs_parts(model):
        Session(path)
        return
    message, weights = hollow(model)
    Session(message, weights=weights, in_place=weights, prepacks=False)


def _may_be_an_input(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Returns whether no pass looks at a weight, or only one that unpacks it, which takes long and changes no node."""
    readers = [use.node for use in value.uses()]
    if readers and all(is_unpacked_product(node) for node in readers):
        return True
    is_known = tensor.dtype == ir.DataType.FLOAT or all(node.op_type == _PACKED for node in readers)
    return is_known and read_in_place(value)


def hollow(model: ir.Model) -> tuple[bytes, Mapping[str, Array]]:
    """Returns ``model`` as bytes, and zeros for large weights that it only names; ``model`` is not modified.

    Zeros that are only read take no memory. Weights of products and float tables become inputs where no pass looks at
    them. Others of one type and shape become one weight, since onnxruntime copies each.
    """
    clone = model.clone()
    graph = clone.graph
    large: dict[str, ir.TensorProtocol] = {}
    kinds: dict[tuple[ir.DataType, tuple[int, ...]], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not may_be_handed_over(tensor, smallest_bytes=_SMALLEST_LEFT_OUT_BYTES):
            continue
        if _may_be_an_input(value, tensor) and not value.is_graph_output():
            del graph.initializers[name]
            value.const_value, value.shape = None, ir.Shape(tensor.shape.numpy())
            value.type = ir.TensorType(tensor.dtype)
            if value not in graph.inputs:
                graph.inputs.append(value)
        elif value.uses():
            alike = kinds.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), value)
            if alike is not value and not value.is_graph_output() and not value.is_graph_input():
                value.replace_all_uses_with(alike)
                del graph.initializers[name]
                continue
            large[name] = tensor
            value.const_value = place_holder(tensor, name)
    # All of them are the same bytes.
    nothing = np.zeros(max((tensor.nbytes for tensor in large.values()), default=0), np.uint8)
    zeros = {
        name: nothing[: tensor.nbytes].view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
        for name, tensor in large.items()
    }
    return ir.to_proto(clone).SerializeToString(), zeros
