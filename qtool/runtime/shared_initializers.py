"""Shares weights in memory with onnxruntime, outside of the message that holds the graph."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array
from qtool.graph.unpacked_product import is_unpacked_product

# The types that onnxruntime accepts from numpy's memory.
_TYPES = frozenset(
    {
        ir.DataType.BFLOAT16,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.INT8,
        ir.DataType.UINT8,
    }
)
# The input of each operator that is a matrix of weights, or a table.
_WEIGHT_INPUTS = {"Gather": 0, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "MatMulNBits": 1}
# onnxruntime reads weights in steps of this size.
_ALIGNMENT_BYTES = 16
# Copies of tensors that lie otherwise in their file, as most of them do; a search opens their graph hundreds of times.
_KEPT: WeakKeyDictionary[ir.TensorProtocol, Array] = WeakKeyDictionary()
_MOST_KEPT_BYTES = 256 << 20


def may_be_handed_over(tensor: ir.TensorProtocol, *, smallest_bytes: int) -> bool:
    """Returns whether ``tensor`` has a type that can be shared, and is large enough to be worth it."""
    return tensor.nbytes >= smallest_bytes and tensor.dtype in _TYPES


def read_in_place(value: ir.Value) -> bool:
    """Returns whether only kernels read ``value`` that onnxruntime gives the weights of the graph as they are.

    Its optimizer turns other constants, under their own names, to move Transposes past them.
    """
    return bool(value.uses()) and all(
        _WEIGHT_INPUTS.get(use.node.op_type) == use.idx and not is_unpacked_product(use.node) for use in value.uses()
    )


def place_holder(tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
    """Returns the placeholder in the message for a tensor that is shared by ``name``."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor("handed over", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)


def ready(tensor: ir.TensorProtocol, *, keeps: bool = False) -> Array:
    """Returns the numbers of ``tensor`` as onnxruntime reads them; a copy only where their layout differs.

    ``keeps`` holds some copies as long as their tensor, for a graph that is opened again and again.
    """
    known = _KEPT.get(tensor)
    if known is not None:
        return known
    array = np.ascontiguousarray(tensor.numpy())
    if array.ctypes.data % _ALIGNMENT_BYTES == 0:
        return array
    array = array.copy()
    if keeps and array.nbytes + sum(kept.nbytes for kept in _KEPT.values()) <= _MOST_KEPT_BYTES:
        _KEPT[tensor] = array
    return array
