"""Follows lengths through the integer arithmetic by which exporters compute shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from qtool.graph.constants import constant_array, integer_attribute
from qtool.graph.lengths import Length, Lengths, dims_of, product

# Shapes have at most so many elements.
_LONGEST = 16


class ShapeArithmetic:
    """The elements of small integer tensors, after the nodes were visited in order."""

    def __init__(self) -> None:
        """Starts without any."""
        self._elements: dict[ir.Value, Lengths] = {}

    def elements(self, value: ir.Value | None) -> Lengths | None:
        """Returns the elements of a tensor with one axis or none; None where it does not hold lengths."""
        if value is None:
            return None
        if value in self._elements:
            return self._elements[value]
        array = constant_array(value) if _is_small(value) else None
        if array is None or array.dtype.kind not in "iu" or array.ndim > 1 or array.size > _LONGEST:
            return None
        return tuple(Length(int(number)) for number in array.reshape(-1))

    def see(self, node: ir.Node) -> None:
        """Computes the elements of a node's output, where they are lengths."""
        rule = _RULES.get(node.op_type) if node.domain == "" else None
        found = None if rule is None else rule(self, node)
        if found is not None and len(found) <= _LONGEST and any(length is not None for length in found):
            self._elements[node.outputs[0]] = found


def _is_small(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size <= _LONGEST


def _shape(_: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    dims = None if node.inputs[0] is None else dims_of(node.inputs[0])
    if dims is None:
        return None
    end = node.attributes.get("end")
    return dims[integer_attribute(node, "start", 0) : None if end is None else end.as_int()]


def _size(_: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    dims = None if node.inputs[0] is None else dims_of(node.inputs[0])
    return None if dims is None else (product(dims),)


def _same(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    return arithmetic.elements(node.inputs[0])


def _cast(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    whole = node.attributes["to"].as_int() in (ir.DataType.INT32, ir.DataType.INT64)
    return arithmetic.elements(node.inputs[0]) if whole else None


def _reshape(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    found = arithmetic.elements(node.inputs[0])
    shape = node.outputs[0].shape
    return found if found is not None and shape is not None and len(shape) <= 1 else None


def _gather(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    found, places = arithmetic.elements(node.inputs[0]), constant_array(node.inputs[1])
    if found is None or places is None or places.ndim > 1:
        return None
    if any(not -len(found) <= place < len(found) for place in places.reshape(-1)):
        return None
    return tuple(found[int(place)] for place in places.reshape(-1))


def _slice(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    found = arithmetic.elements(node.inputs[0])
    bounds = [None if value is None else constant_array(value) for value in node.inputs[1:]]
    if found is None or len(bounds) < 2 or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    numbers = [int(bound.reshape(())) for bound in bounds if bound is not None]
    step = numbers[3] if len(numbers) > 3 else 1
    if step == 0:
        return None
    if step < 0 and numbers[1] < -len(found):
        return found[numbers[0] :: step]
    return found[numbers[0] : numbers[1] : step]


def _concat(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    parts = [arithmetic.elements(value) or _unknown(value) for value in node.inputs]
    if any(part is None for part in parts):
        return None
    return tuple(length for part in parts if part is not None for length in part)


def _unknown(value: ir.Value | None) -> Lengths | None:
    """Returns as many unknown elements as a tensor with one axis has, where that is known."""
    if value is None or value.shape is None or len(value.shape) != 1:
        return None
    count = value.shape[0]
    return (None,) * count if isinstance(count, int) and count <= _LONGEST else None


def _mul(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    return _elementwise(arithmetic, node, lambda left, right: left * right)


def _div(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    return _elementwise(arithmetic, node, lambda left, right: left.divided_by(right))


def _add(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    return _elementwise(arithmetic, node, lambda left, right: _sum(left, right, 1))


def _sub(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    return _elementwise(arithmetic, node, lambda left, right: _sum(left, right, -1))


def _sum(left: Length, right: Length, sign: int) -> Length | None:
    if left.names == right.names:
        return Length(left.factor + sign * right.factor, left.names if left.factor + sign * right.factor else ())
    return left if right == Length(0) else None


def _elementwise(
    arithmetic: ShapeArithmetic, node: ir.Node, rule: Callable[[Length, Length], Length | None]
) -> Lengths | None:
    left, right = (arithmetic.elements(value) for value in node.inputs[:2])
    if not left or not right:
        return None
    count = max(len(left), len(right))
    left, right = (found * count if len(found) == 1 else found for found in (left, right))
    if len(left) != len(right):
        return None
    return tuple(None if a is None or b is None else rule(a, b) for a, b in zip(left, right, strict=True))


def _range(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    bounds = [arithmetic.elements(value) for value in node.inputs]
    numbers = [None if bound is None or len(bound) != 1 or bound[0] is None else bound[0].number for bound in bounds]
    if any(number is None for number in numbers) or numbers[2] == 0:
        return None
    start, stop, step = (number for number in numbers if number is not None)
    return tuple(Length(number) for number in range(start, stop, step)) if abs(stop - start) <= _LONGEST else None


def _reduce_prod(arithmetic: ShapeArithmetic, node: ir.Node) -> Lengths | None:
    found = arithmetic.elements(node.inputs[0])
    return None if found is None else (product(found),)


_RULES: Mapping[str, Callable[[ShapeArithmetic, ir.Node], Lengths | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Squeeze": _same,
    "Unsqueeze": _reshape,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Mul": _mul,
    "Div": _div,
    "Add": _add,
    "Sub": _sub,
    "Range": _range,
    "ReduceProd": _reduce_prod,
}
