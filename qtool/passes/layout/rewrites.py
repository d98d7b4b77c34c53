"""Rewrites of nodes whose inputs are stored with permuted axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute, is_constant
from qtool.graph.names import Names
from qtool.passes.layout.permutations import Perm, identity, inverse, is_identity, with_new, without

Change: TypeAlias = Callable[[ir.Graph, Names], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """The same node on stored tensors.

    Attributes:
        wanted: the permutations of its inputs, by position; others are not permuted.
        made: the permutation of its outputs.
        change: the change of the node besides its inputs.
    """

    wanted: Mapping[int, Perm]
    made: tuple[Perm, ...]
    change: Change | None = None


# Returns the rewrite of a node whose first input is stored with that permutation; None where there is none.
Rule: TypeAlias = Callable[[ir.Node, Perm], Rewrite | None]

VALUE_BY_VALUE = (
    *("Abs", "Cast", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign"),
    *("Sin", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
)
BROADCASTING = frozenset(
    {
        *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min"),
        *("Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
    }
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)


def _alike(node: ir.Node, perm: Perm) -> Rewrite | None:
    """Each value by itself: nothing changes."""
    return Rewrite(wanted={0: perm}, made=tuple(perm for _ in node.outputs))


def _along_axis(node: ir.Node, perm: Perm) -> Rewrite | None:
    """One axis is named."""
    # Before opset 13 all axes after this one belong to it.
    default = -1 if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") else 0
    axis = integer_attribute(node, "axis", default) % len(perm)
    inputs = range(len(node.inputs)) if node.op_type == "Concat" else range(1)

    def change(_: ir.Graph, __: Names) -> None:
        node.attributes["axis"] = ir.AttrInt64("axis", perm[axis])

    return Rewrite(wanted=dict.fromkeys(inputs, perm), made=tuple(perm for _ in node.outputs), change=change)


def _argument(node: ir.Node, perm: Perm) -> Rewrite | None:
    """One axis is named, which may go."""
    found = _along_axis(node, perm)
    if found is None or integer_attribute(node, "keepdims", 1):
        return found
    axis = integer_attribute(node, "axis", 0) % len(perm)
    return Rewrite(wanted=found.wanted, made=(without(perm, [axis]),), change=found.change)


def _reduction(node: ir.Node, perm: Perm) -> Rewrite | None:
    """Some axes are named, as an attribute or an input, which may go."""
    axes = _axes(node, 1)
    if axes is None or not axes:
        return None
    axes = [axis % len(perm) for axis in axes]
    kept = integer_attribute(node, "keepdims", 1)

    def change(graph: ir.Graph, names: Names) -> None:
        _set_axes(graph, names, node, 1, sorted(perm[axis] for axis in axes))

    return Rewrite(wanted={0: perm}, made=(perm if kept else without(perm, axes),), change=change)


def _quantizing(node: ir.Node, perm: Perm) -> Rewrite | None:
    """One scale is for all values, or each index of one axis has its own."""
    scale = constant_array(node.inputs[1])
    if scale is None or integer_attribute(node, "block_size", 0):
        return None
    if scale.size == 1:
        return _alike(node, perm)
    axis = integer_attribute(node, "axis", 1) % len(perm)

    def change(_: ir.Graph, __: Names) -> None:
        node.attributes["axis"] = ir.AttrInt64("axis", perm[axis])

    return Rewrite(wanted={0: perm}, made=(perm,), change=change)


def _squeeze(node: ir.Node, perm: Perm) -> Rewrite | None:
    found = None if _axes(node, 1) is None else _reduction(node, perm)
    axes = [axis % len(perm) for axis in _axes(node, 1) or ()]
    return None if found is None else Rewrite(wanted=found.wanted, made=(without(perm, axes),), change=found.change)


def _unsqueeze(node: ir.Node, perm: Perm) -> Rewrite | None:
    axes = _axes(node, 1)
    if not axes:
        return None
    return Rewrite(wanted={0: perm}, made=(with_new(perm, [axis % (len(perm) + len(axes)) for axis in axes]),))


def _slice(node: ir.Node, perm: Perm) -> Rewrite | None:
    starts = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if starts is None:
        return None
    given = node.inputs[3] if len(node.inputs) > 3 else None
    axes = constant_array(given)
    if given is not None and axes is None:
        return None
    moved = [perm[int(axis) % len(perm)] for axis in (range(starts.size) if axes is None else axes.reshape(-1))]

    def change(graph: ir.Graph, names: Names) -> None:
        if len(node.inputs) < 4:
            node.resize_inputs(4)
        node.replace_input_with(3, _stored(graph, names, node, "axes", np.asarray(moved, np.int64)))

    return Rewrite(wanted={0: perm}, made=(perm,), change=change)


def _pad(node: ir.Node, perm: Perm) -> Rewrite | None:
    pads = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if pads is None or pads.size != 2 * len(perm) or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    moved = pads.reshape(2, -1)[:, list(inverse(perm))].reshape(-1)

    def change(graph: ir.Graph, names: Names) -> None:
        node.replace_input_with(1, _stored(graph, names, node, "pads", moved))

    return Rewrite(wanted={0: perm}, made=(perm,), change=change)


def _reshape(node: ir.Node, perm: Perm) -> Rewrite | None:
    """Only axes of length 1 come or go; all others stay in order."""
    source, target = node.inputs[0], constant_array(node.inputs[1])
    if source is None or source.shape is None or target is None or integer_attribute(node, "allowzero", 0):
        return None
    # The shape that is declared is that of the logical tensor as long as the plan is made.
    before = [dim if isinstance(dim, int) and dim > 0 else -1 for dim in source.shape]
    after = _resolved(before, target.tolist())
    # With one unknown length on each side these are the same, since the others are.
    if after is None or max(before.count(-1), after.count(-1)) > 1:
        return None
    if [dim for dim in before if dim != 1] != [dim for dim in after if dim != 1]:
        return None
    gone = [axis for axis, dim in enumerate(before) if dim == 1]
    come = [axis for axis, dim in enumerate(after) if dim == 1]
    made = with_new(without(perm, gone), come)
    moved = [after[axis] for axis in inverse(made)]

    def change(graph: ir.Graph, names: Names) -> None:
        node.replace_input_with(1, _stored(graph, names, node, "shape", np.asarray(moved, np.int64)))

    return Rewrite(wanted={0: perm}, made=(made,), change=change)


def _resolved(before: Sequence[int], target: Sequence[int]) -> list[int] | None:
    """Returns a target shape without zeros, nor -1 where all lengths are known; None where a 0 means nothing."""
    after = []
    for axis, dim in enumerate(target):
        if dim == 0 and axis >= len(before):
            return None
        after.append(before[axis] if dim == 0 else dim)
    if after.count(-1) == 1 and -1 not in before:
        known = math.prod(dim for dim in after if dim != -1)
        after[after.index(-1)] = math.prod(before) // max(known, 1)
    return after


def _shape(node: ir.Node, perm: Perm) -> Rewrite | None:
    """The lengths are those of the stored tensor, in the order of the logical one."""
    if "start" in node.attributes or "end" in node.attributes or node.outputs[0].is_graph_output():
        return None

    def change(graph: ir.Graph, names: Names) -> None:
        lengths = node.outputs[0]
        order = _stored(graph, names, node, "order", np.asarray(perm, np.int64))
        picked = ir.node("Gather", [lengths, order], name=names.for_node(f"{node.name}_in_order"))
        graph.insert_after(node, picked)
        made = picked.outputs[0]
        made.type, made.shape, made.name = lengths.type, lengths.shape, lengths.name
        lengths.name = names.free(f"{lengths.name}_stored")
        for use in list(lengths.uses()):
            if use.node is not picked:
                use.node.replace_input_with(use.idx, made)

    return Rewrite(wanted={0: perm}, made=((0,),), change=change)


def broadcasting_rewrite(node: ir.Node, perms: Sequence[Perm | None]) -> Rewrite | None:
    """Returns the rewrite of a node that computes value by value and repeats what is shorter.

    Args:
        node: the node.
        perms: the permutations of its inputs; None where the rank is unknown.
    """
    rank = max((len(perm) for perm in perms if perm is not None), default=0)
    computed = [place for place, value in enumerate(node.inputs) if value is not None and not is_constant(value)]
    if any(perms[place] is None for place in computed) or (node.op_type == "PRelu" and computed != [0]):
        return None
    candidates = dict.fromkeys([identity(rank), *(perm for place in computed if (perm := perms[place]) is not None)])
    turned = {
        candidate: [place for place in computed if not _fits(node.inputs[place], perms[place], candidate)]
        for candidate in candidates
        if len(candidate) == rank
    }
    chosen = min(turned, key=lambda candidate: len(turned[candidate]))
    # A computed operand with fewer axes would need another shape.
    shorter = any(len(perms[place] or ()) < rank for place in turned[chosen])
    if is_identity(chosen) or shorter:
        return None
    wanted = {place: chosen for place in computed if place in turned[chosen] or perms[place] == chosen}

    def change(graph: ir.Graph, names: Names) -> None:
        for place, value in enumerate(node.inputs):
            array = constant_array(value)
            if value is None or array is None or array.size == 1:
                continue
            whole = array.reshape((1,) * (rank - array.ndim) + array.shape)
            moved = np.transpose(whole, inverse(chosen))
            node.replace_input_with(place, add_constant(graph, f"{value.name}_moved", moved, names=names))

    return Rewrite(wanted=wanted, made=(chosen,), change=change)


def _fits(value: ir.Value | None, perm: Perm | None, chosen: Perm) -> bool:
    """Returns whether an operand can be taken with one permutation as it is kept: only axes of length 1 move."""
    if perm == chosen:
        return True
    if perm is None or not is_identity(perm) or value is None or value.shape is None:
        return False
    dims = (*(1,) * (len(chosen) - len(perm)), *value.shape)
    return all(axis == source or dim == 1 for axis, (source, dim) in enumerate(zip(chosen, dims, strict=True)))


def _axes(node: ir.Node, position: int) -> list[int] | None:
    """Returns the axes, an attribute in older opsets and an input since; None where they are not known."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    array = constant_array(node.inputs[position]) if len(node.inputs) > position else None
    return None if array is None else [int(axis) for axis in array.reshape(-1)]


def _set_axes(graph: ir.Graph, names: Names, node: ir.Node, position: int, axes: Sequence[int]) -> None:
    if "axes" in node.attributes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    else:
        node.replace_input_with(position, _stored(graph, names, node, "axes", np.asarray(axes, np.int64)))


def _stored(graph: ir.Graph, names: Names, node: ir.Node, part: str, array: npt.NDArray[np.int64]) -> ir.Value:
    return add_constant(graph, f"{node.outputs[0].name}_{part}", array, names=names)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(VALUE_BY_VALUE, _alike),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("Concat", "Softmax", "LogSoftmax", "Hardmax", "Split"), _along_axis),
    **dict.fromkeys(("ArgMax", "ArgMin"), _argument),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantizing),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
}
