"""Unrolls loops with few iterations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, constant_number, is_constant
from qtool.graph.names import Names
from qtool.passes.optimization.control_flow import forget_removed_branches, graphs_of
from qtool.passes.optimization.operators import opset_of

_MOST_TRIPS = 8
# The largest number of nodes of all iterations.
_MOST_NODES = 512
_FIRST_WITH_AXES_AS_INPUT = 13


class UnrollLoops(ir.passes.InPlacePass):
    """Replaces a Loop by one copy of its body per iteration, where their number is constant and small.

    Loops that can end early stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Unrolls loops inside of others first, since their bodies come before them in the list."""
        modified = False
        names: Names | None = None
        for graph in reversed(graphs_of(model)):
            for node in [node for node in graph if node.op_type == "Loop" and node.domain == ""]:
                trips = _trips(node)
                if trips is not None:
                    names = names or Names(model.graph)
                    _Unroller(model, node, names).unroll(trips)
                    modified = True
        if modified:
            forget_removed_branches(model)
        return ir.passes.PassResult(model, modified=modified)


def _trips(loop: ir.Node) -> int | None:
    """Returns the number of iterations of a loop, if it is known and small enough."""
    count = constant_number(loop.inputs[0])
    begins = loop.inputs[1] if len(loop.inputs) > 1 else None
    body = loop.attributes["body"].as_graph()
    if count is None or not 0 <= int(count) <= _MOST_TRIPS:
        return None
    start = constant_array(begins)
    if begins is not None and (start is None or not start.all()):
        return None
    trips, carried = int(count), len(body.inputs) - 2
    # A scan output without iterations has a type, but no known shape.
    if not trips and len(body.outputs) > carried + 1:
        return None
    size = sum(1 for _ in ir.traversal.RecursiveGraphIterator(body))
    return trips if _goes_on(body) and trips * size <= _MOST_NODES else None


def _goes_on(body: ir.Graph) -> bool:
    """Returns whether the condition that a body returns is always true when it was true before."""
    value: ir.Value | None = body.outputs[0]
    while value is not None and value is not body.inputs[1]:
        if is_constant(value):
            array = constant_array(value)
            return array is not None and bool(array.all())
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and producer.op_type == "Identity" else None
    return value is not None


class _Unroller:
    def __init__(self, model: ir.Model, loop: ir.Node, names: Names) -> None:
        if loop.graph is None:
            raise AssertionError("the loop was removed before")
        self._model = model
        self._loop = loop
        self._names = names
        self._graph = loop.graph
        self._body = loop.attributes["body"].as_graph()

    def unroll(self, trips: int) -> None:
        carried: list[ir.Value | None] = list(self._loop.inputs[2:])
        scanned: list[list[ir.Value]] = []
        condition = self._loop.inputs[1] if len(self._loop.inputs) > 1 else None
        condition = condition or self._constant("goes_on", np.asarray(True))
        for turn in range(trips):
            number = self._constant("turn", np.asarray(turn, np.int64))
            results = self._turn([number, condition, *carried])
            scanned.append(results[1 + len(carried) :])
            carried = list(results[1 : 1 + len(carried)])
        outputs = [*carried, *(self._stacked(list(values)) for values in zip(*scanned, strict=True))]
        for old, new in zip(self._loop.outputs, outputs, strict=True):
            identity = ir.node("Identity", [new])
            made = identity.outputs[0]
            made.name, made.type, made.shape = old.name, old.type, old.shape
            self._graph.insert_before(self._loop, identity)
            old.replace_all_uses_with(made, replace_graph_outputs=True)
        self._graph.remove(self._loop, safe=True)

    def _turn(self, given: list[ir.Value | None]) -> list[ir.Value]:
        """Inserts a copy of the body before the loop and returns its outputs."""
        copy = self._body.clone(allow_outer_scope_values=True)
        stand_ins = dict(zip(copy.inputs, given, strict=True))
        results = [stand_ins.get(value, value) for value in copy.outputs]
        copy.outputs.clear()
        for value in list(copy.initializers.values()):
            del copy.initializers[value.name or ""]
            value.name = self._names.free(value.name or "constant")
            if value.const_value is not None:
                value.const_value.name = value.name
            self._graph.register_initializer(value)
        for value, given_value in stand_ins.items():
            for use in list(value.uses()):
                use.node.replace_input_with(use.idx, given_value)
        nodes = list(copy)
        copy.remove(nodes)
        for node in nodes:
            node.name = None
            for value in node.outputs:
                value.name = self._names.free(value.name) if value.name else value.name
                # The declared shapes in the body are those of one iteration that the exporter saw.
                value.shape = None
        self._graph.insert_before(self._loop, nodes)
        return [result for result in results if result is not None]

    def _stacked(self, values: list[ir.Value]) -> ir.Value:
        """Returns the values of all iterations as one tensor, with the iterations along a new first axis."""
        rows = []
        for value in values:
            if opset_of(self._model) >= _FIRST_WITH_AXES_AS_INPUT:
                row = ir.node("Unsqueeze", [value, self._constant("axes", np.asarray([0], np.int64))])
            else:
                row = ir.node("Unsqueeze", [value], {"axes": [0]})
            rows.append(row)
        joined = ir.node("Concat", [row.outputs[0] for row in rows], {"axis": 0})
        for node in (*rows, joined):
            node.outputs[0].name = self._names.free(f"{self._loop.name or 'loop'}_turns")
        self._graph.insert_before(self._loop, [*rows, joined])
        return joined.outputs[0]

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        label = f"{self._loop.name or 'loop'}_{name}"
        return add_constant(self._model.graph, label, array, names=self._names)
