"""Conversions between element types that keep every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """The range of a type.

    Attributes:
        signed: whether it holds negative numbers.
        digits: binary digits of the integers that it holds exactly.
        exponent: bits of its exponent; 0 for integers.
    """

    signed: bool
    digits: int
    exponent: int = 0


# IEEE 754 for floats; bfloat16 has the exponent of float32.
_FORMS: Mapping[ir.DataType, _Form] = {
    ir.DataType.BOOL: _Form(signed=False, digits=1),
    ir.DataType.UINT8: _Form(signed=False, digits=8),
    ir.DataType.UINT16: _Form(signed=False, digits=16),
    ir.DataType.UINT32: _Form(signed=False, digits=32),
    ir.DataType.UINT64: _Form(signed=False, digits=64),
    ir.DataType.INT8: _Form(signed=True, digits=7),
    ir.DataType.INT16: _Form(signed=True, digits=15),
    ir.DataType.INT32: _Form(signed=True, digits=31),
    ir.DataType.INT64: _Form(signed=True, digits=63),
    ir.DataType.FLOAT16: _Form(signed=True, digits=11, exponent=5),
    ir.DataType.BFLOAT16: _Form(signed=True, digits=8, exponent=8),
    ir.DataType.FLOAT: _Form(signed=True, digits=24, exponent=8),
    ir.DataType.DOUBLE: _Form(signed=True, digits=53, exponent=11),
}


def is_lossless(source: ir.DataType, target: ir.DataType) -> bool:
    """Returns whether ``target`` represents every value of ``source``, so that casting there and back is lossless."""
    if source == target:
        return True
    before, after = _FORMS.get(source), _FORMS.get(target)
    # A cast to bool asks whether a number is zero.
    if before is None or after is None or target == ir.DataType.BOOL:
        return False
    if before.exponent and not after.exponent:
        return False
    fits = after.digits >= before.digits and after.exponent >= before.exponent
    return fits and (after.signed or not before.signed)
