"""Proves, layer by layer, that a model cannot overflow the 16-bit sums of a machine, or finds where it can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.kernel_order import kernel_order, multiplies_in_32_bits
from qtool.graph.constants import constant_array, integer_attribute
from qtool.schemes import Scheme
from qtool.weights.saturation import LARGEST_ACTIVATION, pair_sums

# Layers of QDQ graphs, whose weight comes from a DequantizeLinear, and the operator whose kernel runs them.
_LAYERS = ("Conv", "Gemm", "MatMul")
# Integer operators: the index of their weight, and the layer that they correspond to.
_INTEGER_OPERATORS: Mapping[str, tuple[int, str]] = {
    "QLinearConv": (3, "Conv"),
    "ConvInteger": (1, "Conv"),
    "QLinearMatMul": (3, "MatMul"),
    "MatMulInteger": (1, "MatMul"),
    "MatMulIntegerToFloat": (1, "MatMul"),
    "DynamicQuantizeMatMul": (1, "MatMul"),
    "QGemm": (3, "Gemm"),
}
_MOVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_INT16_LOW, _INT16_HIGH = -32768, 32767


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProof:
    """The result for one layer.

    Attributes:
        node: its name.
        operator: its type.
        weight: the tensor of its weights.
        lowest: the smallest sum of two products that any input can cause; None where the weights are not known.
        highest: the largest one.
        unsafe_channels: output channels that can overflow.
        channels: output channels.
        reason: why nothing is proven, or needs to be; None where the sums decide.
        safe: whether no input can overflow it.
    """

    node: str
    operator: str
    weight: str
    lowest: int | None
    highest: int | None
    unsafe_channels: int
    channels: int
    reason: str | None
    safe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturationProof:
    """The result for a model.

    Attributes:
        low: the smallest sum that the machine represents; None where sums have 32 bits.
        high: the largest one.
        layers: every layer that multiplies integers, in graph order.
    """

    low: int | None
    high: int | None
    layers: tuple[LayerProof, ...]

    @property
    def safe(self) -> bool:
        """Whether no layer can overflow."""
        return all(layer.safe for layer in self.layers)


def prove(model: ir.Model, scheme: Scheme) -> SaturationProof:
    """Reads the integer weights of a quantized model and compares their extreme sums with the machine's range.

    Args:
        model: quantized by any tool; its constants are initializers, its nodes have names.
        scheme: the preset of the machine.
    """
    limited = scheme.largest_pair is not None
    layers = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        found = _integer_weight(node)
        if found is not None:
            layers.append(_proof(node, *found, limited=limited))
    return SaturationProof(
        low=_INT16_LOW if limited else None,
        high=_INT16_HIGH if limited else None,
        layers=tuple(layers),
    )


def is_integer_operator(operator: str) -> bool:
    """Returns whether nodes of a type multiply integers by themselves, and not only between Q and DQ."""
    return operator in _INTEGER_OPERATORS


def _integer_weight(node: ir.Node) -> tuple[str, ir.Value, bool] | None:
    """Returns the layer of a node, its integer weights, and whether these are stored in the layer's layout.

    None for nodes that do not multiply integers.
    """
    if node.op_type in _INTEGER_OPERATORS:
        position, operator = _INTEGER_OPERATORS[node.op_type]
        weight = node.inputs[position] if position < len(node.inputs) else None
        return None if weight is None or _dtype(weight) not in _BYTES else (operator, weight, True)
    if node.domain != "" or node.op_type not in _LAYERS or len(node.inputs) < 2 or _quantized(node.inputs[0]) is None:
        return None
    value, direct = node.inputs[1], True
    while value is not None and (producer := value.producer()) is not None and producer.op_type in _MOVING:
        value, direct = producer.inputs[0], False
    weight = _quantized(value)
    # Other integer widths have no integer kernel: such a layer computes floats.
    return None if weight is None or _dtype(weight) not in _BYTES else (node.op_type, weight, direct)


def _quantized(value: ir.Value | None) -> ir.Value | None:
    """Returns the integers that a value is dequantized from."""
    producer = None if value is None else value.producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None


def _dtype(value: ir.Value) -> ir.DataType | None:
    """Returns the type of integers; where the model does not state it, that of their zero point."""
    producer = value.producer()
    if producer is None or value.dtype is not None:
        return value.dtype
    zero_point = producer.inputs[2] if producer.op_type == "QuantizeLinear" and len(producer.inputs) > 2 else None
    return ir.DataType.UINT8 if zero_point is None else zero_point.dtype


def _proof(node: ir.Node, operator: str, weight: ir.Value, direct: bool, *, limited: bool) -> LayerProof:
    integers = constant_array(weight)
    safe, reason = True, None
    lowest = highest = None
    unsafe = channels = 0
    if _dtype(weight) == ir.DataType.UINT8:
        reason = "u8 by u8 is multiplied in 16 bits and added in 32"
    elif integers is not None and integers.ndim > 1 and multiplies_in_32_bits(node, integers.shape):
        reason = "depthwise convolutions are multiplied in 32 bits"
    elif integers is None:
        safe, reason = not limited, "its second factor is computed at run time, in s8"
    elif not direct:
        safe, reason = not limited, "its weights are transposed or reshaped before it reads them"
    else:
        transposed = operator == "Gemm" and bool(integer_attribute(node, "transB", 0))
        sums = pair_sums(integers, kernel_order(operator, integers.ndim, transposed=transposed))
        lowest = int(sums.lowest.min(initial=0)) * LARGEST_ACTIVATION
        highest = int(sums.highest.max(initial=0)) * LARGEST_ACTIVATION
        channels = sums.worst.size
        over = (sums.highest * LARGEST_ACTIVATION > _INT16_HIGH) | (sums.lowest * LARGEST_ACTIVATION < _INT16_LOW)
        unsafe = int(over.sum()) if limited else 0
        safe = unsafe == 0
    return LayerProof(
        node=node.name or "",
        operator=node.op_type,
        weight=weight.name or "",
        lowest=lowest,
        highest=highest,
        unsafe_channels=unsafe,
        channels=channels,
        reason=reason,
        safe=safe,
    )
