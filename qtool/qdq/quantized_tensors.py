"""Reads off a QDQ graph which tensors are integers, and under which scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.calib.grid import Float8, Grid
from qtool.graph.constants import constant_array, integer_attribute, is_constant
from qtool.graph.weight_records import Rearranged
from qtool.qdq.packed_integers import is_packed, packed_integers, packed_record
from qtool.qdq.recurrent_layers import WEIGHTS, is_recurrent, recurrent_weight

Role: TypeAlias = Literal["activation", "weight", "bias"]

_STORED_SUFFIX = "_quantized"
# Those of types that numpy lacks.
# The exponent of their smallest normal value, and the bits of their mantissa.
_FLOAT8_FORMS = {Float8.E4M3: (-6, 3), Float8.E5M2: (-14, 2)}
_FLOAT8 = {Grid(float8=kind).dtype.name: kind for kind in Float8}
_BITS = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedTensor:
    """One tensor that is integers for a while.

    Attributes:
        tensor: what it is called in the float model.
        role: what it is there for.
        dtype: of its integers.
        scale: float32, shape (), (channels,) or that of the blocks.
        zero_point: integers of the same shape.
        axis: along which scales differ; None for one scale.
        block: values that share a scale along the axis; 0 for all of a channel.
        value: the float tensor itself, or the stored integers of a constant.
        dequantized: what its readers read.
        bits: of its integers.
        float8: the 8-bit float that it is stored in; None for integers.
        integers: those of packed blocks, in the shape of the float tensor; None where ``value`` holds them as they are.
    """

    tensor: str
    role: Role
    dtype: np.dtype[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    axis: int | None
    block: int
    value: ir.Value
    dequantized: ir.Value
    bits: int
    float8: Float8 | None = None
    integers: npt.NDArray[Any] | None = None

    @property
    def description(self) -> str:
        """Its scheme in words, such as ``uint8 asymmetric, per tensor``."""
        symmetric = "symmetric" if self.float8 or bool((self.zero_point == self._middle).all()) else "asymmetric"
        if self.axis is None:
            spread = "per tensor"
        elif self.block:
            spread = f"in blocks of {self.block} on axis {self.axis}"
        else:
            spread = f"per channel on axis {self.axis} ({self.scale.size})"
        if self.float8 is not None:
            return f"{self.dtype.name}, {spread}"
        return f"{'u' if self.dtype.kind == 'u' else ''}int{self.bits} {symmetric}, {spread}"

    @property
    def low(self) -> float:
        """The smallest number that it can hold, in the channel that reaches lowest."""
        return float(min(end.min() for end in self.ends()))

    @property
    def high(self) -> float:
        """The largest number that it can hold, in the channel that reaches highest."""
        return float(max(end.max() for end in self.ends()))

    @property
    def lowest(self) -> int:
        """The lowest integer, or 8-bit float."""
        if self.float8 is not None:
            return -self.highest
        return -(1 << (self.bits - 1)) if self.dtype.kind == "i" else 0

    @property
    def highest(self) -> int:
        """The highest integer, or 8-bit float."""
        if self.float8 is not None:
            return Grid(float8=self.float8).high
        return self.lowest + (1 << self.bits) - 1

    def nearest(self, steps: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Rounds multiples of the scale, zero point included, to what is stored; beyond the ends they saturate."""
        inside = np.clip(steps, self.lowest, self.highest)
        if self.float8 is None:
            return np.asarray(np.rint(inside), np.float64)
        found: npt.NDArray[np.float64] = inside.astype(self.dtype).astype(np.float64)
        return found

    def widths(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Returns the distance of neighbours at each stored number, in multiples of the scale."""
        if self.float8 is None:
            return np.ones(stored.shape)
        # np.spacing has no neighbour above the largest value.
        smallest_exponent, mantissa_bits = _FLOAT8_FORMS[self.float8]
        exponents = np.frexp(np.abs(stored.astype(np.float64)))[1] - 1
        widths: npt.NDArray[np.float64] = np.exp2(np.maximum(exponents, smallest_exponent) - mantissa_bits)
        return widths

    def ends(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Returns what the lowest and the highest integer stand for, in the shape of the scales."""
        return (self.lowest - self._zeros) * self.scale, (self.highest - self._zeros) * self.scale

    @property
    def _zeros(self) -> npt.NDArray[np.float64]:
        return self.zero_point.astype(np.float64)

    @property
    def _middle(self) -> int:
        return 0 if self.dtype.kind == "i" else (self.highest + 1) // 2

    def stored(self) -> npt.NDArray[Any] | None:
        """Returns the integers of a constant; None for what is computed at run time."""
        return constant_array(self.value) if self.integers is None else self.integers

    def floats(self) -> npt.NDArray[np.float32] | None:
        """Returns the dequantized values of a constant; None for tensors that are computed at run time."""
        integers = self.stored()
        if integers is None:
            return None
        steps = (integers.astype(np.float64) - spread(self, self._zeros, integers)).astype(np.float32)
        floats: npt.NDArray[np.float32] = steps * spread(self, self.scale, integers)
        return floats


def spread(tensor: QuantizedTensor, parameter: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Shapes a scale or zero point of ``tensor`` so that it broadcasts over ``values``."""
    if tensor.axis is None or parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim == values.ndim > 1 and not tensor.block:
        return parameter
    if tensor.block:
        repeated = np.repeat(parameter, tensor.block, axis=tensor.axis)
        return repeated.take(range(values.shape[tensor.axis]), axis=tensor.axis)
    shape = [1] * values.ndim
    shape[tensor.axis] = -1
    return parameter.reshape(shape)


def quantized_tensors(model: ir.Model) -> dict[str, QuantizedTensor]:
    """Returns the tensors of the main graph that are integers, by the name they have in the float model.

    What has scales that are computed at run time is left out; so are all but the first pair behind one tensor.
    """
    found: dict[str, QuantizedTensor] = {}
    for node in model.graph:
        if is_recurrent(node):
            found |= {tensor.tensor: tensor for tensor in _of_recurrent(node) if tensor.tensor not in found}
            continue
        if is_packed(node):
            tensor = _packed(node)
        elif node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            tensor = _read(node, node.inputs[0])
        else:
            continue
        if tensor is not None:
            found.setdefault(tensor.tensor, tensor)
    return found


def _read(node: ir.Node, source: ir.Value) -> QuantizedTensor | None:
    scale = constant_array(node.inputs[1])
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or (zero_value is not None and not is_constant(zero_value)):
        return None
    output = node.outputs[0]
    if is_constant(source):
        stored = constant_array(source)
        if stored is None:
            return None
        dtype, value, role = _plain(source, stored.dtype), source, _role(stored.dtype)
        name = (source.name or "").removesuffix(_STORED_SUFFIX)
    else:
        producer = source.producer()
        if producer is None or producer.op_type != "QuantizeLinear" or producer.inputs[0] is None:
            return None
        zero = constant_array(zero_value)
        dtype, value, role = np.dtype(np.uint8) if zero is None else zero.dtype, producer.inputs[0], "activation"
        name = (output.name if output.is_graph_output() else value.name) or ""
    float8 = _FLOAT8.get(dtype.name)
    if dtype.kind not in "iu" and float8 is None:
        return None
    zeros = constant_array(zero_value)
    bits = _BITS.get(source.dtype, 8 * dtype.itemsize) if source.dtype is not None else 8 * dtype.itemsize
    return QuantizedTensor(
        tensor=name,
        role=role,
        dtype=dtype,
        scale=scale.astype(np.float32),
        zero_point=np.zeros(scale.shape, dtype) if zeros is None else zeros.astype(dtype),
        axis=None if scale.size == 1 else integer_attribute(node, "axis", 1),
        block=integer_attribute(node, "block_size", 0),
        value=value,
        dequantized=output,
        bits=bits,
        float8=float8,
    )


def _packed(node: ir.Node) -> QuantizedTensor | None:
    """Reads the weight of a MatMulNBits or a GatherBlockQuantized, oriented as it is in the float model."""
    stored = packed_integers(node)
    read = node.inputs[0 if node.op_type == "GatherBlockQuantized" else 1]
    if stored is None or read is None:
        return None
    record = packed_record(stored)
    steps = () if record is None else record.steps
    turned = isinstance(steps[-1], Rearranged) if steps else node.op_type == "MatMulNBits" and record is None
    integers, scale, zero = stored.integers, stored.scale, stored.zero
    if turned:
        integers, scale, zero = integers.T, scale.T, zero.T
    return QuantizedTensor(
        tensor=(stored.value.name or "").removesuffix(_STORED_SUFFIX),
        role="weight",
        dtype=np.dtype(np.uint8),
        scale=scale.astype(np.float32),
        zero_point=zero.astype(np.uint8),
        axis=0 if turned else 1,
        block=stored.block,
        value=stored.value,
        dequantized=read,
        bits=stored.bits,
        integers=integers,
    )


def _of_recurrent(node: ir.Node) -> Iterator[QuantizedTensor]:
    """Reads the weights of a DynamicQuantizeLSTM, oriented as in LSTM: (directions, 4 · hidden, inputs)."""
    for index in WEIGHTS:
        weight, value = recurrent_weight(node, index), node.inputs[index]
        if weight is None or value is None:
            continue
        scale, zero = (weight.spread(part).transpose(0, 2, 1) for part in (weight.scale, weight.zero_point))
        yield QuantizedTensor(
            tensor=(value.name or "").removesuffix(_STORED_SUFFIX),
            role="weight",
            dtype=weight.integers.dtype,
            scale=scale.astype(np.float32),
            zero_point=zero,
            axis=None if scale.size == 1 else 1,
            block=0,
            value=value,
            dequantized=value,
            bits=8,
            integers=weight.integers.transpose(0, 2, 1),
        )


def _plain(value: ir.Value, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Returns the type in which numpy holds integers of a type that it lacks."""
    if value.dtype not in _BITS:
        return dtype
    return np.dtype(np.int8 if value.dtype.is_signed() else np.uint8)


def _role(dtype: np.dtype[Any]) -> Role:
    return "bias" if dtype == np.int32 else "weight"
