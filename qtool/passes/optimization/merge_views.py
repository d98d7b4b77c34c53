"""Merges consecutive views into one Reshape."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, sole_consumer
from qtool.graph.lengths import dims_of, shape_of
from qtool.graph.names import Names
from qtool.graph.rewiring import replace
from qtool.graph.views import as_reshape, view_dims
from qtool.passes.normalization.remove_identities import bypass
from qtool.passes.optimization.control_flow import straight_nodes
from qtool.passes.optimization.shape_arithmetic import ShapeArithmetic

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


class MergeViews(ir.passes.InPlacePass):
    """Replaces two of Reshape, Flatten, Squeeze and Unsqueeze in a row by one Reshape, or by nothing.

    A Transpose that moves only axes of length 1 counts among them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Goes through the nodes once, in order, so that a longer row shrinks step by step."""
        names = Names(model.graph)
        arithmetic = ShapeArithmetic()
        modified = False
        for node in straight_nodes(model.graph):
            arithmetic.see(node)
            current: ir.Node | None = node
            while current is not None and current.graph is not None:
                current = _merge(model.graph, current, arithmetic, names)
                modified = modified or current is not None
        return ir.passes.PassResult(model, modified=modified)


def _merge(graph: ir.Graph, second: ir.Node, arithmetic: ShapeArithmetic, names: Names) -> ir.Node | None:
    """Merges a view with the one before it and returns the result, or ``second`` where it was removed."""
    middle = second.inputs[0] if second.op_type in _VIEWS and second.domain == "" else None
    first = None if middle is None else middle.producer()
    if middle is None or first is None or first.op_type not in _VIEWS or first.domain != "":
        return None
    source_value = first.inputs[0]
    if source_value is None or first.graph is not second.graph:
        return None
    if _ignores_its_input(second) and first.op_type != "Transpose":
        # Whatever shape comes in.
        second.replace_input_with(0, source_value)
        _remove_unread(first)
        return second
    source = dims_of(source_value)
    between = None if source is None else view_dims(first, source, arithmetic)
    target = None if between is None else view_dims(second, between, arithmetic)
    if source is None or target is None:
        return None
    if None not in target and target == source and bypass(second, source_value):
        _remove_unread(first)
        return second
    numbers = as_reshape(target, source)
    if numbers is None or sole_consumer(middle) is not second:
        return None
    shape = add_constant(graph, f"{second.outputs[0].name}_shape", np.asarray(numbers, np.int64), names=names)
    made = replace(second, "Reshape", [source_value, shape])
    output = made.outputs[0]
    if None not in target and output.type is not None and not output.is_graph_output():
        output.shape = shape_of(target)
    _remove_unread(first)
    return made


def _ignores_its_input(node: ir.Node) -> bool:
    """Returns whether a Reshape gives all lengths itself, or all but the one that remains."""
    shape = constant_array(node.inputs[1]) if node.op_type == "Reshape" else None
    return shape is not None and not (shape == 0).any()


def _remove_unread(node: ir.Node) -> None:
    output = node.outputs[0]
    if node.graph is not None and not output.uses() and not output.is_graph_output():
        node.graph.remove(node, safe=True)
