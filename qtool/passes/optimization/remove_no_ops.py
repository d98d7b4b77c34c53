"""Removes operators that return their input unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import broadcast_number, constant_array, integer_attribute
from qtool.graph.lengths import Length, dims_of
from qtool.graph.names import Names
from qtool.graph.slices import full_axes_removed
from qtool.graph.views import axes_of
from qtool.passes.normalization.remove_identities import RemoveIdentities, bypass
from qtool.passes.optimization.control_flow import graphs_of
from qtool.passes.optimization.operators import opset_of
from qtool.passes.quantization.neutral_constants import DropNeutralConstants

# The first opset in which Dropout has no attribute for training.
_FIRST_INFERENCE_DROPOUT = 7
_TWICE_IS_ONCE = frozenset({"Relu", "Abs", "Ceil", "Floor", "Round", "Sign"})
_TWICE_IS_NOTHING = frozenset({"Neg", "Not"})
_POOLS = frozenset({"MaxPool", "AveragePool"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"})


class RemoveNoOps(ir.passes.InPlacePass):
    """Removes Identity, Dropout, casts to the same type, full slices, empty padding and similar no-ops."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at every node once, in subgraphs too."""
        modified = bool(DropNeutralConstants()(model).modified)
        names = Names(model.graph)
        opset = opset_of(model)
        for graph in graphs_of(model):
            for node in list(graph):
                if node.domain == "" and _improve(node, opset, model.graph, names):
                    modified = True
        return ir.passes.PassResult(model, modified=bool(RemoveIdentities()(model).modified) or modified)


def _improve(node: ir.Node, opset: int, graph: ir.Graph, names: Names) -> bool:
    if node.op_type == "Slice":
        return full_axes_removed(node, graph, names)
    if node.op_type == "Dropout" and opset < _FIRST_INFERENCE_DROPOUT:
        return False
    # Other outputs of the node would be lost.
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    rule = _RULES.get(node.op_type)
    source = None if rule is None else rule(node)
    return source is not None and bypass(node, source)


def _dropout(node: ir.Node) -> ir.Value | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    switch = constant_array(training)
    return node.inputs[0] if training is None or (switch is not None and not switch.any()) else None


def _cast(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    if source is None or source.dtype is None:
        return None
    if node.op_type == "Cast":
        return source if node.attributes["to"].as_int() == source.dtype else None
    model = node.inputs[1]
    return source if model is not None and model.dtype == source.dtype else None


def _transpose(node: ir.Node) -> ir.Value | None:
    order = node.attributes.get("perm")
    return node.inputs[0] if order is not None and list(order.as_ints()) == sorted(order.as_ints()) else None


def _pad(node: ir.Node) -> ir.Value | None:
    pads: Any = node.attributes["pads"].as_ints() if "pads" in node.attributes else _constant(node, 1)
    return node.inputs[0] if pads is not None and not np.any(pads) else None


def _tile(node: ir.Node) -> ir.Value | None:
    repeats = _constant(node, 1)
    return node.inputs[0] if repeats is not None and (repeats == 1).all() else None


def _only_input(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _split(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _resize(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    mode = node.attributes.get("coordinate_transformation_mode")
    if source is None or (mode is not None and mode.as_string() == "tf_crop_and_resize"):
        return None
    scales, sizes = _constant(node, 2), _constant(node, 3)
    if scales is not None and scales.size:
        return source if (scales == 1).all() else None
    dims = dims_of(source)
    same = sizes is not None and dims is not None and [Length(int(size)) for size in sizes] == list(dims)
    return source if same and "axes" not in node.attributes else None


def _clip(node: ir.Node) -> ir.Value | None:
    # An attribute before opset 11, an input since.
    if "min" in node.attributes or "max" in node.attributes:
        return None
    return node.inputs[0] if all(value is None for value in node.inputs[1:]) else None


def _pool(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    ones = all(
        set(attribute.as_ints()) <= {1}
        for attribute in (node.attributes.get("kernel_shape"), node.attributes.get("strides"))
        if attribute is not None
    )
    pads, automatic = node.attributes.get("pads"), node.attributes.get("auto_pad")
    padded = (pads is not None and any(pads.as_ints())) or (automatic is not None and automatic.as_string() != "NOTSET")
    return source if ones and not padded else None


def _global_pool(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    dims = None if source is None else dims_of(source)
    return source if dims is not None and all(length == Length(1) for length in dims[2:]) else None


def _reduction(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    dims, axes = None if source is None else dims_of(source), axes_of(node)
    if dims is None or not axes or not integer_attribute(node, "keepdims", 1):
        return None
    return source if all(dims[axis] == Length(1) for axis in axes) else None


def _limit(node: ir.Node) -> ir.Value | None:
    """Searches for Max with minus infinity and Min with infinity."""
    if len(node.inputs) != 2:
        return _only_input(node)
    neutral = -np.inf if node.op_type == "Max" else np.inf
    for value, bound in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        if value is not None and broadcast_number(bound, value) == neutral:
            return value
    return None


def _twice(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    if (
        producer is None
        or producer.op_type != node.op_type
        or producer.domain != ""
        or producer.graph is not node.graph
    ):
        return None
    return source if node.op_type in _TWICE_IS_ONCE else producer.inputs[0]


def _power(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    return source if source is not None and broadcast_number(node.inputs[1], source) == 1 else None


def _logic(node: ir.Node) -> ir.Value | None:
    """Searches for And with true and Or with false."""
    for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        if value is not None and broadcast_number(other, value) == (node.op_type == "And"):
            return value
    return None


def _constant(node: ir.Node, index: int) -> npt.NDArray[Any] | None:
    return constant_array(node.inputs[index]) if len(node.inputs) > index else None


_RULES: Mapping[str, Callable[[ir.Node], ir.Value | None]] = {
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "Transpose": _transpose,
    "Pad": _pad,
    "Tile": _tile,
    "Concat": _only_input,
    "Mean": _only_input,
    "Split": _split,
    "Resize": _resize,
    "Clip": _clip,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Max": _limit,
    "Min": _limit,
    "Pow": _power,
    "And": _logic,
    "Or": _logic,
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_TWICE_IS_ONCE | _TWICE_IS_NOTHING, _twice),
}
