"""Changes single nodes for another opset: constant inputs, attributes, axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array
from qtool.graph.names import Names


@dataclass(frozen=True, slots=True)
class Step:
    """The target of a node's conversion.

    Attributes:
        opset: the older opset.
        names: generates names for new values.
    """

    opset: int
    names: Names


def rank_of(value: ir.Value | None) -> int | None:
    """Returns how many axes a value has; None where that is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def numbers_of(value: ir.Value | None) -> list[float] | None:
    """Returns the values of a constant, flat; None where they are computed, or there is no value."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [number.item() for number in tensor.numpy().reshape(-1)]


def to_attributes(
    node: ir.Node, positions: Mapping[int, str], *, floats: bool = False, several: bool = False
) -> str | None:
    """Turns constant inputs, the last ones of the node, into attributes of integers or floats.

    Returns why that cannot be.
    """
    for position, name in sorted(positions.items(), reverse=True):
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is not None:
            numbers = numbers_of(value)
            if numbers is None:
                return f"has {name} that are computed"
            if floats and several:
                node.attributes[name] = ir.AttrFloat32s(name, numbers)
            elif floats:
                node.attributes[name] = ir.AttrFloat32(name, float(numbers[0]))
            else:
                node.attributes[name] = ir.AttrInt64s(name, [int(number) for number in numbers])
        node.resize_inputs(min(position, len(node.inputs)))
    return None


def constant_before(node: ir.Node, array: Array, role: str, step: Step) -> ir.Value:
    """Puts a constant in front of ``node`` and returns it; its name ends with ``role``."""
    name = step.names.free(f"{node.outputs[0].name}_{role}")
    tensor = ir.tensor(array, name=name)
    made = ir.node("Constant", [], attributes={"value": ir.AttrTensor("value", tensor)}, name=name)
    made.outputs[0].name, made.outputs[0].type = name, ir.TensorType(tensor.dtype)
    made.outputs[0].shape = ir.Shape(array.shape)
    _insert(node, made, before=True)
    return made.outputs[0]


def transpose_around(node: ir.Node, order: Sequence[int], step: Step) -> None:
    """Lets ``node`` read its first input, and give its only output, with the axes in another order."""
    value, old = node.inputs[0], node.outputs[0]
    if value is None:
        return
    before = ir.node("Transpose", [value], attributes={"perm": ir.AttrInt64s("perm", order)})
    before.name = before.outputs[0].name = step.names.free(f"{value.name}_transposed")
    before.outputs[0].type = value.type
    _insert(node, before, before=True)
    node.replace_input_with(0, before.outputs[0])
    readers, graph = list(old.uses()), node.graph
    back = [int(place) for place in np.argsort(order)]
    after = ir.node("Transpose", [old], attributes={"perm": ir.AttrInt64s("perm", back)})
    new = after.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    after.name = old.name = step.names.free(f"{old.name}_transposed")
    old.shape = None
    _insert(node, after, before=False)
    for reader, position in readers:
        reader.replace_input_with(position, new)
    if graph is not None:
        graph.outputs[:] = [new if value is old else value for value in graph.outputs]


def _insert(node: ir.Node, made: ir.Node, *, before: bool) -> None:
    graph = node.graph
    if graph is None:
        raise ValueError(f"{node.op_type} belongs to no graph")
    if before:
        graph.insert_before(node, made)
    else:
        graph.insert_after(node, made)
