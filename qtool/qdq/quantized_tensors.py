"""Reads off a QDQ graph which tensors are integers, and under which scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import constant_array, integer_attribute, is_constant

Role: TypeAlias = Literal["activation", "weight", "bias"]

_STORED_SUFFIX = "_quantized"


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

    @property
    def description(self) -> str:
        """Its scheme in words, such as ``uint8 asymmetric, per tensor``."""
        symmetric = "symmetric" if bool((self.zero_point == self._middle).all()) else "asymmetric"
        if self.axis is None:
            spread = "per tensor"
        elif self.block:
            spread = f"in blocks of {self.block} on axis {self.axis}"
        else:
            spread = f"per channel on axis {self.axis} ({self.scale.size})"
        return f"{self.dtype.name} {symmetric}, {spread}"

    @property
    def low(self) -> float:
        """The smallest number that it can hold, in the channel that reaches lowest."""
        return float(((np.iinfo(self.dtype).min - self._zeros) * self.scale).min())

    @property
    def high(self) -> float:
        """The largest number that it can hold, in the channel that reaches highest."""
        return float(((np.iinfo(self.dtype).max - self._zeros) * self.scale).max())

    @property
    def _zeros(self) -> npt.NDArray[np.float64]:
        return self.zero_point.astype(np.float64)

    @property
    def _middle(self) -> int:
        return 0 if self.dtype.kind == "i" else (int(np.iinfo(self.dtype).max) + 1) // 2

    def stored(self) -> npt.NDArray[Any] | None:
        """Returns the integers of a constant; None for what is computed at run time."""
        return constant_array(self.value)

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
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            continue
        tensor = _read(node, node.inputs[0])
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
        dtype, value, role = stored.dtype, source, _role(stored.dtype)
        name = (source.name or "").removesuffix(_STORED_SUFFIX)
    else:
        producer = source.producer()
        if producer is None or producer.op_type != "QuantizeLinear" or producer.inputs[0] is None:
            return None
        zero = constant_array(zero_value)
        dtype, value, role = np.dtype(np.uint8) if zero is None else zero.dtype, producer.inputs[0], "activation"
        name = (output.name if output.is_graph_output() else value.name) or ""
    if dtype.kind not in "iu":
        return None  # float8 and types that numpy lacks have no grid to speak of
    zeros = constant_array(zero_value)
    return QuantizedTensor(
        tensor=name,
        role=role,
        dtype=dtype,
        scale=scale.astype(np.float32),
        zero_point=np.zeros(scale.shape, dtype) if zeros is None else zeros,
        axis=None if scale.size == 1 else integer_attribute(node, "axis", 1),
        block=integer_attribute(node, "block_size", 0),
        value=value,
        dequantized=output,
    )


def _role(dtype: np.dtype[Any]) -> Role:
    return "bias" if dtype == np.int32 else "weight"
