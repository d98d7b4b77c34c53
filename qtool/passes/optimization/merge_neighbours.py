"""Merges two consecutive operators of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnxscript.rewriter.rules.common import (
    max_max_rule,
    max_min_rule,
    min_max_rule,
    min_min_rule,
    successive_clip_relu_rule,
    successive_clip_rule,
    successive_relu_clip_rule,
)

from qtool.graph.constants import integer_attribute, sole_consumer
from qtool.graph.lossless import is_lossless
from qtool.graph.names import Names
from qtool.graph.slices import cuts_of, set_cuts
from qtool.passes.fusion.rules import apply_rules
from qtool.passes.normalization.remove_identities import bypass
from qtool.passes.optimization.control_flow import graphs_of

_CLAMPS = (
    successive_clip_relu_rule,
    successive_relu_clip_rule,
    successive_clip_rule,
    min_min_rule,
    max_max_rule,
    min_max_rule,
    max_min_rule,
)
# The largest number of parts of one Concat, which bounds the copying at each merge.
_MOST_PARTS = 64
# Each of the rules has one of them.
_CLAMPING = frozenset({"Clip", "Max", "Min"})


class MergeNeighbours(ir.passes.InPlacePass):
    """Merges two Transpose, Cast, Slice or Concat in a row; clamps with the rules of onnxscript."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Goes through the nodes once, in order, so that a longer row shrinks step by step."""
        names = Names(model.graph)
        modified = False
        for graph in graphs_of(model):
            for node in list(graph):
                rule = _RULES.get(node.op_type) if node.domain == "" else None
                while rule is not None and node.graph is graph and rule(node, model.graph, names):
                    modified = True
        return ir.passes.PassResult(model, modified=apply_rules(model, _CLAMPS, _CLAMPING) or modified)


def _first(second: ir.Node, value: ir.Value | None) -> ir.Node | None:
    """Returns the node of the same operator that makes ``value``, in the same graph."""
    producer = None if value is None else value.producer()
    if (
        producer is None
        or producer.op_type != second.op_type
        or producer.domain != ""
        or producer.graph is not second.graph
    ):
        return None
    return producer


def _transposes(second: ir.Node, _graph: ir.Graph, _names: Names) -> bool:
    first = _first(second, second.inputs[0])
    if first is None or "perm" not in first.attributes or "perm" not in second.attributes:
        return False
    inner, outer = first.attributes["perm"].as_ints(), second.attributes["perm"].as_ints()
    order = [inner[axis] for axis in outer]
    if order == sorted(order) and bypass(second, first.inputs[0]):
        _remove_unread(first)
        return True
    # Two that have other readers as well would stay two.
    if sole_consumer(first.outputs[0]) is not second:
        return False
    second.attributes["perm"] = ir.AttrInt64s("perm", order)
    second.replace_input_with(0, first.inputs[0])
    _remove_unread(first)
    return True


def _casts(second: ir.Node, _graph: ir.Graph, _names: Names) -> bool:
    first = _first(second, second.inputs[0])
    source = None if first is None else first.inputs[0]
    if first is None or source is None or source.dtype is None:
        return False
    if not is_lossless(source.dtype, ir.DataType(first.attributes["to"].as_int())):
        return False
    if second.attributes["to"].as_int() == source.dtype and bypass(second, source):
        _remove_unread(first)
        return True
    if sole_consumer(first.outputs[0]) is not second:
        return False
    second.replace_input_with(0, source)
    _remove_unread(first)
    return True


def _slices(second: ir.Node, graph: ir.Graph, names: Names) -> bool:
    first = _first(second, second.inputs[0])
    if first is None or sole_consumer(first.outputs[0]) is not second:
        return False
    inner, outer = cuts_of(first), cuts_of(second)
    if inner is None or outer is None or {cut.axis for cut in inner} & {cut.axis for cut in outer}:
        return False
    second.replace_input_with(0, first.inputs[0])
    set_cuts(second, sorted((*inner, *outer), key=lambda cut: cut.axis), graph, names)
    _remove_unread(first)
    return True


def _concats(second: ir.Node, _graph: ir.Graph, _names: Names) -> bool:
    axis = integer_attribute(second, "axis", 0)
    for index, value in enumerate(second.inputs):
        first = _first(second, value)
        if (
            first is None
            or integer_attribute(first, "axis", 0) != axis
            or sole_consumer(first.outputs[0]) is not second
        ):
            continue
        if len(second.inputs) + len(first.inputs) > _MOST_PARTS:
            continue
        parts = [*second.inputs[:index], *first.inputs, *second.inputs[index + 1 :]]
        second.resize_inputs(len(parts))
        for place, part in enumerate(parts):
            second.replace_input_with(place, part)
        _remove_unread(first)
        return True
    return False


def _remove_unread(node: ir.Node) -> None:
    if node.graph is not None and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        node.graph.remove(node, safe=True)


_RULES: Mapping[str, Callable[[ir.Node, ir.Graph, Names], bool]] = {
    "Transpose": _transposes,
    "Cast": _casts,
    "Slice": _slices,
    "Concat": _concats,
}
