"""Reads the integers of DequantizeLinear, with per-tensor, per-channel or per-block scales, and requantizes them.

Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import constant_array, integer_attribute, is_constant, sole_consumer
from qtool.qdq.scale_policy import ScalePolicy

Array = npt.NDArray[Any]

# Operators that read integer weights.
INTEGER_LAYERS = frozenset({"DequantizeLinear", "MatMulInteger", "ConvInteger"})
# The types of weights and biases; 8-bit floats of DequantizeLinear are not rounded to a grid.
_BITS = {
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
    ir.DataType.INT16: 16,
    ir.DataType.UINT16: 16,
    ir.DataType.INT32: 32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerRules:
    """Describes how changed floats become integers again.

    Attributes:
        scales: the policy for their scales.
        fits_blocks: whether weights in blocks get scales that fit their new values best, instead of by the policy.
        largest_pair: what two neighbouring weights of one sign may add up to, for sums of 16 bits to hold their
            products; None for everything.
    """

    scales: ScalePolicy = ScalePolicy.GROW
    fits_blocks: bool = False
    largest_pair: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredIntegers:
    """A stored tensor that a DequantizeLinear makes floats of: (q − zero point) · scale.

    Attributes:
        value: the initializer.
        integers: q.
        scale: as it is stored: one number, one for each length of ``axis``, or one for each block along it.
        zero: in the shape of ``scale``.
        axis: where channels or blocks follow each other.
        block: the length of a block; 0 without blocks.
        bits: of the type.
        signed: whether the type has negative integers.
    """

    value: ir.Value
    integers: Array
    scale: Array
    zero: Array
    axis: int
    block: int
    bits: int
    signed: bool

    def floats(self) -> Array:
        """Returns the dequantized values, in float64."""
        return self.with_scale(self.integers, self.scale)

    def with_scale(self, integers: Array, scale: Array) -> Array:
        """Returns the dequantized values of other integers with other scales, in float64."""
        floats: Array = (integers.astype(np.float64) - self._spread(self.zero)) * self._spread(scale)
        return floats

    def needed_scale(self, exact: Array) -> Array:
        """Returns the smallest scales, with their old signs, at which ``exact`` fits between the extreme integers."""
        low, high = self._limits()
        sign = np.where(self.scale < 0, -1.0, 1.0)
        exact = exact * self._spread(sign)
        above = self._largest(exact) / np.maximum(high - self.zero, 1)
        below = self._largest(-exact) / np.maximum(self.zero - low, 1)
        needed: Array = sign * np.maximum(np.maximum(above, below), 0)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerInputs:
    """Says where a graph has integers: which inputs of which nodes hold them, their scales and their zero points.

    Attributes:
        integers: the node and its input's number.
        scale: the node and input number of its scale.
        zero: those of its zero point; None where zero points are zero.
        axis: of the integers, where channels or blocks follow each other.
        block: the length of a block; 0 without blocks.
        unit: what each scale is multiplied by besides.
    """

    integers: tuple[ir.Node, int]
    scale: tuple[ir.Node, int]
    zero: tuple[ir.Node, int] | None
    axis: int
    block: int = 0
    unit: float = 1.0


def integer_inputs(node: ir.Node) -> IntegerInputs | None:
    """Returns where ``node``, a DequantizeLinear, MatMulInteger or ConvInteger, has its weights.

    None where it has none, or products of integers are not multiplied with their scales in the way that quantizers
    write.
    """
    if node.op_type == "DequantizeLinear":
        zero = (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        axis, block = integer_attribute(node, "axis", 1), integer_attribute(node, "block_size", 0)
        rows = None if node.inputs[0] is None else node.inputs[0].producer()
        if rows is not None:
            return _inputs_of_table(rows, node, zero)
        return IntegerInputs(integers=(node, 0), scale=(node, 1), zero=zero, axis=axis, block=block)
    scale = _factor_of_weights(node)
    if scale is None:
        return None
    zero = (node, 3) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    stored = node.inputs[1]
    turn = None if stored is None else stored.producer()
    if node.op_type == "MatMulInteger" and turn is not None and turn.op_type == "Transpose":
        return IntegerInputs(integers=(turn, 0), scale=scale, zero=zero, axis=0)
    return IntegerInputs(integers=(node, 1), scale=scale, zero=zero, axis=0 if node.op_type == "ConvInteger" else -1)


def _inputs_of_table(gather: ir.Node, dequantize: ir.Node, zero: tuple[ir.Node, int] | None) -> IntegerInputs | None:
    """Returns where a table of integers is whose rows are looked up first, and then dequantized.

    The scale is one, one a column, or one for all behind which a multiplication has one a column.
    """
    reads_rows = gather.op_type == "Gather" and integer_attribute(gather, "axis", 0) == 0
    scale = constant_array(dequantize.inputs[1])
    if not reads_rows or scale is None or not (scale > 0).all() or sole_consumer(gather.outputs[0]) is not dequantize:
        return None
    if scale.size > 1:
        rank = None if gather.outputs[0].shape is None else len(gather.outputs[0].shape)
        last = integer_attribute(dequantize, "axis", 1) in (-1, None if rank is None else rank - 1)
        return IntegerInputs(integers=(gather, 0), scale=(dequantize, 1), zero=zero, axis=1) if last else None
    multiply = sole_consumer(dequantize.outputs[0])
    if multiply is not None and multiply.op_type == "Mul":
        index = next((index for index, value in enumerate(multiply.inputs) if is_constant(value)), None)
        factors = None if index is None else constant_array(multiply.inputs[index])
        table = constant_array(gather.inputs[0])
        if index is not None and factors is not None and table is not None and factors.shape == table.shape[1:]:
            unit = float(scale.reshape(()))
            return IntegerInputs(integers=(gather, 0), scale=(multiply, index), zero=zero, axis=1, unit=unit)
    return IntegerInputs(integers=(gather, 0), scale=(dequantize, 1), zero=zero, axis=1)


def _factor_of_weights(product: ir.Node) -> tuple[ir.Node, int] | None:
    """Returns the stored factor in Cast(product) · (scale of the input · factor)."""
    cast = sole_consumer(product.outputs[0])
    result = None if cast is None or cast.op_type != "Cast" else sole_consumer(cast.outputs[0])
    if cast is None or result is None or result.op_type != "Mul":
        return None
    other = next((value for value in result.inputs if value is not cast.outputs[0]), None)
    producer = None if other is None else other.producer()
    if producer is None or producer.op_type != "Mul":
        return None
    return next(((producer, index) for index, value in enumerate(producer.inputs) if is_constant(value)), None)


def stored_integers(node: ir.Node) -> StoredIntegers | None:
    """Returns the integers of one of ``INTEGER_LAYERS``; None where they are computed, or the shapes do not agree."""
    places = integer_inputs(node)
    if places is None:
        return None
    source = _value(places.integers)
    integers, scale = constant_array(source), constant_array(_value(places.scale))
    bits = None if source is None or source.dtype is None else _BITS.get(source.dtype)
    if integers is None or scale is None or bits is None or source is None or source.dtype is None:
        return None
    scale = scale * scale.dtype.type(places.unit) if places.unit != 1.0 else scale
    zero = constant_array(_value(places.zero)) if places.zero is not None else np.zeros(scale.shape)
    axis = places.axis + integers.ndim if places.axis < 0 else places.axis
    if zero is not None and zero.size == 1:
        zero = np.broadcast_to(zero.reshape(()), scale.shape)
    if zero is None or zero.shape != scale.shape or not _fits(integers.shape, scale.shape, axis, places.block):
        return None
    return StoredIntegers(
        value=source,
        integers=integers,
        scale=scale,
        zero=zero.astype(np.float64),
        axis=axis,
        block=places.block if scale.size > 1 else 0,
        bits=bits,
        signed=source.dtype.is_signed(),
    )


def _value(place: tuple[ir.Node, int]) -> ir.Value | None:
    node, index = place
    return node.inputs[index]


def _fits(shape: tuple[int, ...], scale: tuple[int, ...], axis: int, block: int) -> bool:
    if int(np.prod(scale)) == 1:
        return True
    if not 0 <= axis < len(shape):
        return False
    if block:
        blocks = -(-shape[axis] // block)
        return scale == (*shape[:axis], blocks, *shape[axis + 1 :])
    return scale == (shape[axis],)
