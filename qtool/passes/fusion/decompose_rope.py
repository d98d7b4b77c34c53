"""Decomposes rotary position embeddings, for runtimes without an operator for them.

Source: operator RotaryEmbedding of ONNX's opset 23; com.microsoft.RotaryEmbedding,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, integer_attribute
from qtool.graph.names import Names
from qtool.passes.optimization.operators import ONNXRUNTIME_DOMAIN, opset_of

# (batch, heads, steps, length)
_RANK = 4
# Unsqueeze takes its axes as an input from here on.
_FIRST_OPSET = 13


class DecomposeRope(ir.passes.InPlacePass):
    """Decomposes RotaryEmbedding, the standard's and onnxruntime's, into Slice, Mul, Add and Concat.

    Tensors are (batch, heads, steps, length), or (batch, steps, heads * length) where the node says how many heads.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every one with supported inputs."""
        names = Names(model.graph)
        modified = False
        if opset_of(model) < _FIRST_OPSET:
            return ir.passes.PassResult(model, modified=False)
        for node in [node for node in model.graph if node.op_type == "RotaryEmbedding"]:
            if node.domain in ("", ONNXRUNTIME_DOMAIN) and _is_understood(node):
                _Decomposer(model.graph, node, names).replace()
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _is_understood(node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None or any(value is None for value in node.inputs):
        return False
    if integer_attribute(node, "is_packed_batching", 0) or "scale" in node.attributes:
        return False
    length = source.shape[-1]
    heads = integer_attribute(node, "num_heads", 0)
    if len(source.shape) == _RANK:
        return isinstance(length, int)
    return len(source.shape) == _RANK - 1 and heads > 0 and isinstance(length, int)


class _Decomposer:
    def __init__(self, graph: ir.Graph, node: ir.Node, names: Names) -> None:
        self._graph = graph
        self._node = node
        self._names = names
        self._interleaved = bool(integer_attribute(node, "interleaved", 0))
        self._is_flat = len(node.inputs[0].shape or ()) != _RANK if node.inputs[0] is not None else False

    def replace(self) -> None:
        source, old = self._node.inputs[0], self._node.outputs[0]
        if source is None or source.shape is None:
            raise AssertionError("the node was looked at before")
        length, heads = source.shape[-1], integer_attribute(self._node, "num_heads", 0)
        if not isinstance(length, int):
            raise AssertionError("the node was looked at before")
        if self._is_flat:
            length //= heads
            source = self._make("Reshape", [source, self._integers([0, 0, heads, length])])
        turning = integer_attribute(self._node, "rotary_embedding_dim", 0) or length
        result = self._turned(source if turning == length else self._cut(source, 0, turning, 1), turning)
        if turning != length:
            result = self._make("Concat", [result, self._cut(source, turning, length, 1)], {"axis": -1})
        if self._is_flat:
            result = self._make("Reshape", [result, self._integers([0, 0, heads * length])])
        result.name, result.type, result.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)

    def _turned(self, source: ir.Value, length: int) -> ir.Value:
        half = length // 2
        if self._interleaved:
            first, second = self._cut(source, 0, length, 2), self._cut(source, 1, length, 2)
        else:
            first, second = self._cut(source, 0, half, 1), self._cut(source, half, length, 1)
        cosines, sines = self._tables(source)
        negative = self._make("Neg", [sines])
        real = self._sum(first, cosines, second, negative)
        imaginary = self._sum(second, cosines, first, sines)
        if not self._interleaved:
            return self._make("Concat", [real, imaginary], {"axis": -1})
        last = self._integers([-1])
        pairs = [self._make("Unsqueeze", [part, last]) for part in (real, imaginary)]
        stack = self._make("Concat", pairs, {"axis": -1})
        return self._make("Reshape", [stack, self._integers([0, 0, 0, length])])

    def _tables(self, source: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns both tables with an axis of length 1 for the heads."""
        if self._node.domain == ONNXRUNTIME_DOMAIN:
            positions, *tables = self._node.inputs[1:4]
        else:
            tables = list(self._node.inputs[1:3])
            positions = self._node.inputs[3] if len(self._node.inputs) > 3 else None
        cosines, sines = (self._rows(table, positions, source) for table in tables)
        heads = self._integers([2 if self._is_flat else 1])
        return self._make("Unsqueeze", [cosines, heads]), self._make("Unsqueeze", [sines, heads])

    def _rows(self, table: ir.Value | None, positions: ir.Value | None, source: ir.Value) -> ir.Value:
        """Returns the rows of a table for each sample and step."""
        if table is None:
            raise AssertionError("the node was looked at before")
        if positions is None:
            return table
        if positions.shape is not None and len(positions.shape) == 1:
            # One number: the position of the first step, in all samples.
            axis = 1 if self._is_flat else 2
            lengths = self._make("Shape", [source], None, ir.DataType.INT64)
            count = self._make("Gather", [lengths, self._scalar(axis)], {"axis": 0})
            one, zero = self._scalar(1), self._scalar(0)
            numbers = self._make("Range", [zero, count, one], None, ir.DataType.INT64)
            positions = self._make("Unsqueeze", [self._make("Add", [numbers, positions]), self._integers([0])])
        return self._make("Gather", [table, positions], {"axis": 0})

    def _sum(self, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> ir.Value:
        return self._make("Add", [self._make("Mul", [a, b]), self._make("Mul", [c, d])])

    def _cut(self, value: ir.Value, start: int, end: int, step: int) -> ir.Value:
        bounds = [self._integers([number]) for number in (start, end, -1, step)]
        return self._make("Slice", [value, *bounds])

    def _make(
        self,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, int] | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        made = ir.node(op_type, inputs, attributes or {})
        made.outputs[0].name = self._names.free(f"{self._node.name or 'rope'}_{op_type.lower()}")
        kind = dtype or inputs[0].dtype
        made.outputs[0].type = None if kind is None else ir.TensorType(kind)
        self._graph.insert_before(self._node, made)
        return made.outputs[0]

    def _integers(self, numbers: list[int]) -> ir.Value:
        return self._constant(np.asarray(numbers, np.int64))

    def _scalar(self, number: int) -> ir.Value:
        return self._constant(np.asarray(number, np.int64))

    def _constant(self, array: npt.NDArray[np.int64]) -> ir.Value:
        return add_constant(self._graph, f"{self._node.name or 'rope'}_constant", array, names=self._names)
