"""Checks that inline ONNX tensors have as many values as their shapes need.

Source: TensorProto in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import math

import onnx

from qtool.formats.errors import FormatError

# Entries of the field that holds values of a type, for one value: complex numbers take two.
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def check_inline(tensor: onnx.TensorProto, nbytes: int) -> None:
    """Passes when a tensor that is not external holds as many values as its shape says.

    Args:
        tensor: the tensor.
        nbytes: the bytes that its shape and element type need; 0 for texts, which have no such number.

    Raises:
        FormatError: it holds more or fewer.
    """
    needed = math.prod(int(dim) for dim in tensor.dims)
    if tensor.HasField("raw_data"):
        held, needed, unit = len(tensor.raw_data), nbytes, "bytes"
    else:
        held, unit = sum(len(getattr(tensor, field)) for field in _FIELDS), "values"
        needed *= 2 if tensor.data_type in _COMPLEX else 1
        # Integers of four or two bits share an entry, in some versions of onnx.
        if tensor.int32_data and nbytes < needed and held in (nbytes, -(-nbytes // 4)):
            return
    if held != needed:
        raise FormatError(
            f"tensor '{tensor.name}' holds {held:,} {unit} where its shape needs {needed:,}",
            fix="do not use this file unless you trust it; export the model again",
        )
