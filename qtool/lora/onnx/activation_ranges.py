"""Reads the ranges of activations between Q and DQ, and widens them where a merge increases the values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.calib.affine import Range, params_from_range
from qtool.calib.grid import Grid
from qtool.graph.constants import add_constant, constant_array, is_constant
from qtool.lora.onnx.requantizing import rescale_biases

_BITS = {
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
    ir.DataType.INT16: 16,
    ir.DataType.UINT16: 16,
}
# Growth is not measured on a side of a tensor that is this small relative to the other side.
_LEAST_SHARE_OF_A_SIDE = 1 / 8
# Nor on a whole tensor that stays this near to zero.
_LEAST_SHARE_OF_THE_RANGE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedActivation:
    """A tensor quantized by a QuantizeLinear with one scale and dequantized by its readers.

    Attributes:
        quantize: the QuantizeLinear.
        dequantizes: the DequantizeLinear nodes that read its integers.
        grid: the integers.
        span: the range that they represent.
    """

    quantize: ir.Node
    dequantizes: tuple[ir.Node, ...]
    grid: Grid
    span: Range

    @property
    def tensor(self) -> str:
        """The name of the quantized tensor."""
        value = self.quantize.inputs[0]
        return "" if value is None else value.name or ""

    @property
    def layers(self) -> list[ir.Node]:
        """The nodes whose first input is its dequantized form."""
        return [use.node for node in self.dequantizes for use in node.outputs[0].uses() if use.idx == 0]

    @property
    def places(self) -> tuple[ir.Node, ...]:
        """The nodes that read its scale and zero point."""
        return (self.quantize, *self.dequantizes)


def quantized_activations(model: ir.Model) -> list[QuantizedActivation]:
    """Returns the activations of the main graph that have one stored scale and integers of 8 or 16 bits."""
    found = [_activation(node) for node in model.graph if node.op_type == "QuantizeLinear"]
    return [activation for activation in found if activation is not None]


def _activation(quantize: ir.Node) -> QuantizedActivation | None:
    readers = tuple(use.node for use in quantize.outputs[0].uses())
    scale, zero_value = constant_array(quantize.inputs[1]), _zero_point(quantize)
    if is_constant(quantize.inputs[0]) or any(node.op_type != "DequantizeLinear" for node in readers):
        return None
    zero = np.zeros((), np.int64) if zero_value is None else constant_array(zero_value)
    integers = quantize.outputs[0].dtype if zero_value is None else zero_value.dtype
    bits = _BITS.get(integers or ir.DataType.UINT8)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or bits is None:
        return None
    if not 0.0 < float(scale.reshape(())) < np.inf:
        return None
    signed = integers is not None and integers.is_signed()
    middle = 0 if signed else 1 << (bits - 1)
    grid = Grid(bits=bits, signed=signed, symmetric=int(zero.reshape(())) == middle)
    step, zero_point = float(scale.reshape(())), int(zero.reshape(()))
    # A symmetric unsigned grid has one integer more below its middle.
    low = zero_point - grid.high if grid.symmetric else grid.low - zero_point
    span = Range(low * step, (grid.high - zero_point) * step)
    return QuantizedActivation(quantize=quantize, dequantizes=readers, grid=grid, span=span)


def _zero_point(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def grown(span: Range, before: Range, after: Range, *, symmetric: bool, keeps_zero: bool) -> Range:
    """Returns ``span`` with each end scaled by the growth of the tensor's extremes, and never narrowed.

    The ratio keeps the clipping or the headroom of the calibration. An end at zero becomes the new extreme.

    Args:
        span: the range that the integers represent.
        before: the extremes of the float values before a change of weights.
        after: the same after it, on the same inputs.
        symmetric: whether both ends have the same distance from zero.
        keeps_zero: whether a range that begins at zero stays so, since that represents a ReLU.
    """
    reach, seen = max(-span.low, span.high), max(-before.low, before.high, 0.0)
    share = min(max(seen / reach, _LEAST_SHARE_OF_THE_RANGE), 1.0) * _LEAST_SHARE_OF_A_SIDE if reach else 0.0
    if symmetric:
        end = _grown_end(reach, seen, max(-after.low, after.high), share)
        return Range(-end, end)
    low = 0.0 if keeps_zero and span.low == 0.0 else -_grown_end(-span.low, -before.low, -after.low, share)
    return Range(low, _grown_end(span.high, before.high, after.high, share))


def _grown_end(end: float, before: float, after: float, share: float) -> float:
    """Returns one end of a range; all arguments are distances from zero."""
    if end > 0.0 and before > end * share:
        return end * max(after / before, 1.0)
    return max(end, after) if after > before else end


def growth(span: Range, wider: Range) -> float:
    """Returns the ratio by which ``wider`` exceeds ``span``: 1 where it does not."""
    reach = max(-span.low, span.high)
    beyond = max(span.low - wider.low, wider.high - span.high)
    return 1.0 + beyond / reach if beyond > 0 else 1.0


def sharing(activations: Sequence[QuantizedActivation]) -> list[list[int]]:
    """Returns groups of the indices of activations that share one scale.

    Zero points tell ranges of the same width apart.
    """
    keys = [{(node.inputs[1], activation.span) for node in activation.places} for activation in activations]
    group_of: dict[tuple[ir.Value | None, Range], list[int]] = {}
    for number, own in enumerate(keys):
        near = {id(group_of[key]): group_of[key] for key in own if key in group_of}
        largest = max(near.values(), key=len, default=[])
        for members in near.values():
            if members is not largest:
                largest.extend(members)
                group_of |= {key: largest for member in members for key in keys[member]}
        largest.append(number)
        group_of |= dict.fromkeys(own, largest)
    return [sorted(members) for members in {id(members): members for members in group_of.values()}.values()]


def set_range(activations: Sequence[QuantizedActivation], span: Range) -> None:
    """Gives activations of one scale the parameters for ``span``; int32 biases of layers that read them follow.

    Raises:
        CalibError: the range is not finite.
    """
    first = activations[0]
    params = params_from_range(span, first.grid)
    old = constant_array(first.quantize.inputs[1])
    if old is None:
        raise AssertionError(first.tensor)
    nodes = dict.fromkeys(node for activation in activations for node in activation.places)
    _replace(nodes, 1, params.scale)
    _replace(nodes, 2, params.zero_point)
    new = constant_array(first.quantize.inputs[1])
    if new is None:
        raise AssertionError(first.tensor)
    factor = new.reshape(()).astype(np.float64) / old.reshape(()).astype(np.float64)
    rescale_biases([node for activation in activations for node in activation.dequantizes], np.asarray(factor))


def _replace(nodes: Mapping[ir.Node, None], index: int, number: npt.NDArray[Any]) -> None:
    """Replaces the number that ``nodes`` read by ``number``, in the same type and shape."""
    for value in _inputs(nodes, index):
        old = constant_array(value)
        if old is None or value.graph is None:
            raise AssertionError(value)
        array = number.astype(old.dtype).reshape(old.shape)
        if all(use.node in nodes and use.idx == index for use in value.uses()) and value.is_initializer():
            value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)
            continue
        graph = next(iter(nodes)).graph
        if not isinstance(graph, ir.Graph):
            raise AssertionError(value)
        copy = add_constant(graph, value.name or "constant", array)
        for use in list(value.uses()):
            if use.node in nodes and use.idx == index:
                use.node.replace_input_with(index, copy)


def _inputs(nodes: Iterable[ir.Node], index: int) -> list[ir.Value]:
    values = [node.inputs[index] for node in nodes if len(node.inputs) > index]
    return list(dict.fromkeys(value for value in values if value is not None))
