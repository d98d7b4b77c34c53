"""Writes graphs in an older opset where onnx's converter knows no way: most operators only took fewer types there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtool.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx.defs import OpSchema

# In their older form they join all axes from theirs on, which is the same for the last axis alone.
_SOFTMAX = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_SOFTMAX_OPSET = 13
# Inputs that were attributes before, and have to be constants to become such again.
_WERE_ATTRIBUTES = {"axes": "axes", "split": "split"}


def restamp(model: ir.Model, opset: int) -> ir.Model:
    """Returns ``model``, changed in place, with the operators of an older opset.

    The definitions that come with the onnx package decide: an operator whose older form has the same inputs, attributes
    and defaults, and takes the types at hand, stays as it is. Callers compare the result with the original.

    Raises:
        InputError: an operator has no such form; its name is in the message.
    """
    import onnx

    have = model.opset_imports.get("", opset)
    for node in list(model.graph.all_nodes()):
        if node.domain or not onnx.defs.has(node.op_type, opset, ""):
            continue
        old, new = (onnx.defs.get_schema(node.op_type, version, "") for version in (opset, have))
        if old.since_version == new.since_version:
            continue
        reason = _settled(node, old, new)
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


def _settled(node: ir.Node, old: OpSchema, new: OpSchema) -> str | None:
    """Gives ``node`` its older form, or returns why there is none."""
    if node.op_type in _SOFTMAX and old.since_version < _SOFTMAX_OPSET:
        return _settle_softmax(node)
    for position, formal in enumerate(new.inputs):
        name = _WERE_ATTRIBUTES.get(formal.name)
        if name is None or name not in old.attributes or position >= len(old.inputs) + 1:
            continue
        reason = _settle_attribute(node, position, name)
        if reason is not None:
            return reason
    if len(node.inputs) > old.max_input or len(node.outputs) > old.max_output:
        return "has inputs or outputs that its older form lacks"
    for name in list(node.attributes):
        if name in old.attributes:
            continue
        if not _is_default(node, name, new) and not says_nothing(node, name):
            return f"needs its attribute {name}"
        del node.attributes[name]
    for name, attribute in new.attributes.items():
        before = old.attributes.get(name)
        if name not in node.attributes and before is not None and before.default_value != attribute.default_value:
            return f"has another default of its attribute {name} there"
    return _wrong_type(node, old)


def _settle_softmax(node: ir.Node) -> str | None:
    import onnx_ir as ir

    value = node.inputs[0]
    rank = None if value is None or value.shape is None else len(value.shape)
    axis = node.attributes.get_int("axis", -1)
    if rank is None or axis % rank != rank - 1:
        return "computes along an axis that is not known to be the last one, which its older form cannot"
    node.attributes["axis"] = ir.AttrInt64("axis", rank - 1)
    return None


def _settle_attribute(node: ir.Node, position: int, name: str) -> str | None:
    import onnx_ir as ir

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


def _is_default(node: ir.Node, name: str, new: OpSchema) -> bool:
    import onnx

    default = new.attributes[name].default_value if name in new.attributes else None
    return default is not None and onnx.helper.get_attribute_value(default) == node.attributes[name].value


def says_nothing(node: ir.Node, name: str) -> bool:
    """Tells whether an attribute is about a case that this node is not."""
    if name == "noop_with_empty_axes":
        return "axes" in node.attributes
    if name == "allowzero" and node.inputs[1] is not None:
        import onnx_ir as ir

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
