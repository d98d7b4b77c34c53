"""Operators that change the shape of a tensor and keep the order of its elements."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qtool.graph.constants import constant_array, integer_attribute
from qtool.graph.lengths import Length, Lengths, product
from qtool.passes.optimization.shape_arithmetic import ShapeArithmetic


def view_dims(node: ir.Node, source: Lengths, arithmetic: ShapeArithmetic) -> Lengths | None:
    """Returns the shape that a view gives ``source``; None where ``node`` is not a view, or too little is known.

    A length that is None is what remains for it.
    """
    if node.domain != "":
        return None
    if node.op_type == "Reshape":
        return reshaped(node, source, arithmetic)
    if node.op_type == "Flatten":
        axis = integer_attribute(node, "axis", 1)
        return (product(source[:axis]), product(source[axis:]))
    if node.op_type == "Transpose":
        return _transposed(node, source)
    if node.op_type in ("Squeeze", "Unsqueeze"):
        axes = axes_of(node)
        if axes is None:
            return None
        return _squeezed(source, axes) if node.op_type == "Squeeze" else _unsqueezed(source, axes)
    return None


def reshaped(node: ir.Node, source: Lengths | None, arithmetic: ShapeArithmetic) -> Lengths | None:
    """Returns the shape that a Reshape makes; a length that is None is what remains for it."""
    wanted = arithmetic.elements(node.inputs[1])
    if wanted is None:
        return None
    lengths: list[Length | None] = []
    for axis, length in enumerate(wanted):
        if length == Length(0):
            # Here it means the dimension of the input, or no elements at all.
            if integer_attribute(node, "allowzero", 0) or source is None or axis >= len(source):
                return None
            lengths.append(source[axis])
        else:
            lengths.append(length)
    rest = [axis for axis, length in enumerate(lengths) if length == Length(-1)]
    if len(rest) > 1 or (rest and None in lengths):
        return None
    for axis in rest:
        total, others = product(source or (None,)), product(lengths[:axis] + lengths[axis + 1 :])
        lengths[axis] = None if total is None or others is None else total.divided_by(others)
    return tuple(lengths)


def as_reshape(target: Lengths, source: Lengths | None) -> list[int] | None:
    """Returns the shape constant of a Reshape of ``source`` to ``target``; None where a constant cannot express it."""
    numbers: list[int] = []
    for axis, length in enumerate(target):
        number = None if length is None else length.number
        if number is not None:
            numbers.append(number)
        elif length is not None and source is not None and axis < len(source) and source[axis] == length:
            numbers.append(0)
        else:
            numbers.append(-1)
    empty = any(length == Length(0) for length in (*target, *(source or ())))
    return None if empty or numbers.count(-1) > 1 or min(numbers, default=0) < -1 else numbers


def axes_of(node: ir.Node) -> list[int] | None:
    """Returns the axes of a Squeeze, Unsqueeze or reduction, an attribute in old opsets and an input in new ones."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    array = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else [int(axis) for axis in array.reshape(-1)]


def _transposed(node: ir.Node, source: Lengths) -> Lengths | None:
    """Returns the output shape of a Transpose that moves only axes of length 1."""
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else tuple(reversed(range(len(source))))
    long = [axis for axis in order if source[axis] != Length(1)]
    return tuple(source[axis] for axis in order) if long == sorted(long) else None


def _squeezed(source: Lengths, axes: Sequence[int]) -> Lengths:
    gone = {axis % len(source) for axis in axes}
    return tuple(length for axis, length in enumerate(source) if axis not in gone)


def _unsqueezed(source: Lengths, axes: Sequence[int]) -> Lengths:
    rank = len(source) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(source)
    return tuple(Length(1) if axis in new else next(rest) for axis in range(rank))
