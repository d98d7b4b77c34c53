"""Downgrades graphs to an older opset where onnx's converter cannot: most operators only support fewer types there."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from qtool.errors import InputError
from qtool.graph.names import Names
from qtool.workflows.convert.node_edits import Step, rank_of
from qtool.workflows.convert.older_forms import older_form

_NEGATIVE_AXES_OPSET = 11
# Inputs that were attributes before, and have to be constants to become such again.
_WERE_ATTRIBUTES = {"axes": "axes", "split": "split"}


def restamp(model: ir.Model, opset: int) -> ir.Model:
    """Returns ``model``, changed in place, with the operators of an older opset.

    The operator definitions of the onnx package decide: an operator whose older form has the same inputs, attributes
    and defaults, and supports the types in use, does not change. Callers compare the result with the original.

    Raises:
        InputError: an operator has no such form; its name is in the message.
    """
    have = model.opset_imports.get("", opset)
    step = Step(opset, Names(model.graph))
    for node in list(model.graph.all_nodes()):
        if node.domain or not onnx.defs.has(node.op_type, have, ""):
            continue
        new = onnx.defs.get_schema(node.op_type, have, "")
        if onnx.defs.has(node.op_type, opset, "") and _since(node, opset) == new.since_version:
            continue
        reason = older_form(node, step) if opset < have else None
        # Renamed operators are checked under their new name.
        if reason is None and onnx.defs.has(node.op_type, opset, ""):
            new = onnx.defs.get_schema(node.op_type, have, "")
            reason = _settled(node, onnx.defs.get_schema(node.op_type, opset, ""), new)
        if reason is not None:
            raise InputError(
                f"the graph cannot go from opset {have} to {opset}: {node.op_type} '{node.name}' {reason}",
                fix=f"choose opset {new.since_version} or newer",
            )
    model.opset_imports[""] = opset
    for function in model.functions.values():
        if "" in function.opset_imports:
            function.opset_imports[""] = opset
    return model


def _since(node: ir.Node, opset: int) -> int:
    since: int = onnx.defs.get_schema(node.op_type, opset, "").since_version
    return since


def _settled(node: ir.Node, old: OpSchema, new: OpSchema) -> str | None:
    """Gives ``node`` the inputs and attributes of ``old``, or returns why that is not possible."""
    for position, formal in enumerate(new.inputs):
        name = _WERE_ATTRIBUTES.get(formal.name)
        if name is None or name not in old.attributes or position >= len(old.inputs) + 1:
            continue
        reason = _settle_attribute(node, position, name)
        if reason is not None:
            return reason
    if old.since_version < _NEGATIVE_AXES_OPSET:
        _count_axes_from_the_front(node)
    if len(node.inputs) < old.min_input or any(value is None for value in node.inputs[: old.min_input]):
        return "lacks inputs that its older form needs"
    if len(node.inputs) > old.max_input or len(node.outputs) > old.max_output:
        return "has inputs or outputs that its older form lacks"
    for name in list(node.attributes):
        if name in old.attributes:
            continue
        if not is_default(node, name, new) and not says_nothing(node, name):
            return f"needs its attribute {name}"
        del node.attributes[name]
    for name, attribute in new.attributes.items():
        before = old.attributes.get(name)
        if name not in node.attributes and before is not None and before.default_value != attribute.default_value:
            return f"has another default of its attribute {name} there"
    return _wrong_type(node, old)


def _count_axes_from_the_front(node: ir.Node) -> None:
    rank = rank_of(node.inputs[0] if node.inputs else None)
    if node.op_type == "Unsqueeze":  # whose axes are those of what it makes
        rank = rank_of(node.outputs[0])
    if rank is None:
        return
    if "axis" in node.attributes and node.attributes.get_int("axis", 0) < 0:
        node.attributes["axis"] = ir.AttrInt64("axis", node.attributes.get_int("axis", 0) + rank)
    if "axes" in node.attributes:
        axes = [axis % rank if rank else axis for axis in node.attributes.get_ints("axes", ())]
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)


def _settle_attribute(node: ir.Node, position: int, name: str) -> str | None:
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return f"has {name} that are computed"
    numbers = [int(number) for number in tensor.numpy().reshape(-1)]
    if not numbers:
        return f"has empty {name}"
    node.attributes[name] = ir.AttrInt64s(name, numbers)
    node.resize_inputs(position)
    return None


def is_default(node: ir.Node, name: str, new: OpSchema) -> bool:
    """Returns whether an attribute has its default value."""
    default = new.attributes[name].default_value if name in new.attributes else None
    if default is None or not default.type:
        return False
    value = onnx.helper.get_attribute_value(default)
    return bool((value.decode() if isinstance(value, bytes) else value) == node.attributes[name].value)


def says_nothing(node: ir.Node, name: str) -> bool:
    """Returns whether an attribute has no effect on this node."""
    if name == "noop_with_empty_axes":
        return "axes" in node.attributes
    if name == "dilations":
        return all(step == 1 for step in node.attributes[name].as_ints())
    if name == "allowzero" and node.inputs[1] is not None:
        shape = ir.convenience.get_const_tensor(node.inputs[1])
        return shape is not None and bool(shape.numpy().all())
    return False


def _wrong_type(node: ir.Node, old: OpSchema) -> str | None:
    for values, formals in ((node.inputs, old.inputs), (node.outputs, old.outputs)):
        for position, value in enumerate(values):
            if value is None or value.dtype is None or not formals:
                continue
            formal = formals[min(position, len(formals) - 1)]
            types = {text.partition("(")[2].rstrip(")") for text in formal.types if text.startswith("tensor(")}
            name = {"FLOAT": "float", "DOUBLE": "double"}.get(value.dtype.name, value.dtype.name.lower())
            if types and name not in types:
                return f"takes no {value.dtype.name.lower()} there"
    return None
