"""Reads the integers behind DequantizeLinear, with one scale, one a channel or one a block, and finds new ones.

Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.passes.constants import constant_array, integer_attribute

Array = npt.NDArray[Any]

# What weights and biases are stored in; eight-bit floats behind DequantizeLinear are not rounded to a grid.
_BITS = {
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
    ir.DataType.INT16: 16,
    ir.DataType.UINT16: 16,
    ir.DataType.INT32: 32,
}


class ScalePolicy(StrEnum):
    """Says what becomes of the scales of integers when what they stand for changes.

    GROW keeps them but where values outgrow their integers; KEEP keeps all of them and clips; RECOMPUTE takes those
    that the largest value of each channel needs.
    """

    GROW = "grow"
    KEEP = "keep"
    RECOMPUTE = "recompute"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredIntegers:
    """Is a stored tensor that a DequantizeLinear makes floats of: (q − zero point) · scale.

    Attributes:
        integers: q.
        scale: as it is stored: one number, one for each length of ``axis``, or one for each block along it.
        zero: in the shape of ``scale``.
        axis: where channels or blocks follow each other.
        block: the length of a block; 0 without blocks.
        bits: of the type.
        signed: whether the type has negative integers.
    """

    integers: Array
    scale: Array
    zero: Array
    axis: int
    block: int
    bits: int
    signed: bool

    def floats(self) -> Array:
        """Returns what the integers stand for, in float64."""
        return self.with_scale(self.integers, self.scale)

    def with_scale(self, integers: Array, scale: Array) -> Array:
        """Returns what other integers stand for under other scales, in float64."""
        floats: Array = (integers.astype(np.float64) - self._spread(self.zero)) * self._spread(scale)
        return floats

    def needed_scale(self, exact: Array) -> Array:
        """Returns the smallest scales at which ``exact`` fits between the lowest and the highest integer."""
        low, high = self._limits()
        above = self._largest(exact) / np.maximum(high - self.zero, 1)
        below = self._largest(-exact) / np.maximum(self.zero - low, 1)
        needed: Array = np.maximum(np.maximum(above, below), 0)
        return needed

    def rounded(self, exact: Array, scale: Array) -> tuple[Array, Array]:
        """Returns the nearest integers under ``scale``, and where ``exact`` lies beyond the last of them."""
        low, high = self._limits()
        wanted = np.rint(exact / self._spread(scale) + self._spread(self.zero))
        beyond: Array = (wanted < low) | (wanted > high)
        whole = np.clip(wanted, low, high).astype(np.int64)
        return whole.astype(self.integers.dtype), beyond

    def _limits(self) -> tuple[int, int]:
        if not self.signed:
            return 0, 2**self.bits - 1
        high = 2 ** (self.bits - 1) - 1
        # Where zero is in the middle, the lowest integer has no counterpart, and most quantizers leave it out.
        left_out = not self.zero.any() and int(self.integers.astype(np.int64).min()) >= -high
        return (-high if left_out else -high - 1), high

    def _spread(self, parameter: Array) -> Array:
        wide = parameter.astype(np.float64)
        if wide.size == 1:
            return wide.reshape(())
        if self.block:
            spread: Array = np.repeat(wide, self.block, axis=self.axis)
            return spread.take(range(self.integers.shape[self.axis]), axis=self.axis)
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return wide.reshape(shape)

    def _largest(self, values: Array) -> Array:
        """Returns the largest of ``values`` that share a scale, in the shape of the scales."""
        if self.scale.size == 1:
            return np.full(self.scale.shape, values.max())
        if self.block:
            starts = np.arange(0, values.shape[self.axis], self.block)
            return np.maximum.reduceat(values, starts, axis=self.axis)
        others = tuple(axis for axis in range(values.ndim) if axis != self.axis)
        largest: Array = values.max(axis=others)
        return largest


def stored_integers(node: ir.Node) -> StoredIntegers | None:
    """Returns what a DequantizeLinear reads; None where it is computed, is no integer, or the shapes do not agree."""
    source = node.inputs[0]
    integers, scale = constant_array(source), constant_array(node.inputs[1])
    bits = None if source is None or source.dtype is None else _BITS.get(source.dtype)
    if integers is None or scale is None or bits is None or source is None or source.dtype is None:
        return None
    has_zero = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = constant_array(node.inputs[2]) if has_zero else np.zeros(scale.shape)
    axis, block = integer_attribute(node, "axis", 1), integer_attribute(node, "block_size", 0)
    axis = axis + integers.ndim if axis < 0 else axis
    if zero is None or zero.shape != scale.shape or not _fits(integers.shape, scale.shape, axis, block):
        return None
    return StoredIntegers(
        integers=integers,
        scale=scale,
        zero=zero.astype(np.float64),
        axis=axis,
        block=block if scale.size > 1 else 0,
        bits=bits,
        signed=source.dtype.is_signed(),
    )


def _fits(shape: tuple[int, ...], scale: tuple[int, ...], axis: int, block: int) -> bool:
    if int(np.prod(scale)) == 1:
        return True
    if not 0 <= axis < len(shape):
        return False
    if block:
        blocks = -(-shape[axis] // block)
        return scale == (*shape[:axis], blocks, *shape[axis + 1 :])
    return scale == (shape[axis],)
