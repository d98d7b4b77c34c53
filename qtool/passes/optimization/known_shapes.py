"""Stores shapes that are known before the model runs as constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute
from qtool.graph.lengths import Length, Lengths, dims_of, shape_of
from qtool.graph.names import Names
from qtool.graph.views import as_reshape, reshaped
from qtool.passes.normalization.remove_identities import bypass
from qtool.passes.optimization.control_flow import straight_nodes
from qtool.passes.optimization.shape_arithmetic import ShapeArithmetic

_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "Less", "And", "Or", "Where"})


class KnownShapes(ir.passes.InPlacePass):
    """Replaces fixed lengths, and shape inputs of Reshape with at most one unknown length, by constants.

    A length that Reshape copies becomes 0, which means that. A Reshape or Expand to the shape of its input is
    removed.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Goes through the nodes once, in order."""
        worker = _Worker(model.graph)
        modified = False
        for node in straight_nodes(model.graph):
            worker.arithmetic.see(node)
            modified = worker.improve(node) or modified
        return ir.passes.PassResult(model, modified=modified)


def _broadcasts(reader: ir.Node, index: int, wanted: Lengths, source: Lengths) -> bool:
    """Returns whether the other operands of a reader make it repeat a tensor just as Expand does."""
    if reader.domain != "" or reader.op_type not in _BROADCASTING:
        return False
    others = [dims_of(value) for place, value in enumerate(reader.inputs) if place != index and value is not None]
    for from_end in range(1, len(wanted) + 1):
        length = wanted[-from_end]
        if length is not None and length in (Length(1), source[-from_end]):
            continue
        if length is None or not any(dims and len(dims) >= from_end and dims[-from_end] == length for dims in others):
            return False
    return True


class _Worker:
    def __init__(self, graph: ir.Graph) -> None:
        self.arithmetic = ShapeArithmetic()
        self._graph = graph
        self._names: Names | None = None
        self._stored: dict[tuple[int, ...], ir.Value] = {}

    def improve(self, node: ir.Node) -> bool:
        if node.domain != "":
            return False
        if node.op_type == "Reshape":
            return self._reshape(node)
        if node.op_type == "Expand":
            return self._expand(node)
        return self._constant(node)

    def _constant(self, node: ir.Node) -> bool:
        """Replaces a node all of whose elements are known numbers."""
        output = node.outputs[0]
        found = self.arithmetic.elements(output)
        if found is None or output.shape is None or len(output.shape) > 1 or output.is_graph_output():
            return False
        numbers = [length.number for length in found if length is not None]
        if len(numbers) != len(found) or None in numbers or output.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
            return False
        array = np.asarray(numbers, output.dtype.numpy())
        value = self._add(f"{output.name}_known", array if len(output.shape) else array.reshape(()))
        output.replace_all_uses_with(value)
        graph = node.graph
        if graph is not None:
            graph.remove(node, safe=True)
        return True

    def _reshape(self, node: ir.Node) -> bool:
        source_value = node.inputs[0]
        if source_value is None:
            return False
        source = dims_of(source_value)
        target = reshaped(node, source, self.arithmetic)
        if target is None:
            return False
        if None not in target and target == source and bypass(node, source_value):
            return True
        output = node.outputs[0]
        if None not in target and output.type is not None and not output.is_graph_output():
            output.shape = shape_of(target)
        numbers = as_reshape(target, source)
        if numbers is None:
            return False
        stored = constant_array(node.inputs[1])
        if stored is not None and stored.tolist() == numbers and not integer_attribute(node, "allowzero", 0):
            return False
        node.replace_input_with(1, self._shape(output, numbers))
        node.attributes.pop("allowzero", None)
        return True

    def _expand(self, node: ir.Node) -> bool:
        source_value = node.inputs[0]
        wanted = self.arithmetic.elements(node.inputs[1])
        source = None if source_value is None else dims_of(source_value)
        if wanted is None or source is None or len(wanted) > len(source):
            return False
        aligned = source[len(source) - len(wanted) :]
        same = all(
            length is not None and length in (Length(1), before) for length, before in zip(wanted, aligned, strict=True)
        )
        needless = same or all(_broadcasts(use.node, use.idx, wanted, aligned) for use in node.outputs[0].uses())
        return needless and bypass(node, source_value)

    def _shape(self, output: ir.Value, numbers: list[int]) -> ir.Value:
        key = tuple(numbers)
        if key not in self._stored:
            self._stored[key] = self._add(f"{output.name}_shape", np.asarray(numbers, np.int64))
        return self._stored[key]

    def _add(self, name: str, array: npt.NDArray[np.integer[Any]]) -> ir.Value:
        if self._names is None:
            self._names = Names(self._graph)
        return add_constant(self._graph, name, array, names=self._names)
