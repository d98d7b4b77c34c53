"""Recognizes decomposed rotary position embeddings, half-rotated and interleaved.

Sources: Su et al., RoFormer, https://arxiv.org/abs/2104.09864; operator RotaryEmbedding of ONNX's opset 23.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtool.graph.constants import add_constant
from qtool.graph.lengths import Length, dims_of
from qtool.graph.names import Names
from qtool.graph.rewiring import replace
from qtool.passes.fusion.rope_parts import Part, is_doubled, joined, last_length, part_of
from qtool.passes.optimization.operators import ONNXRUNTIME_DOMAIN, Operators, opset_of, use_onnxruntime

_FIRST_OPSET = 23
_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """A matched rotary embedding.

    Attributes:
        source: the rotated tensor, of shape (batch, heads, steps, length).
        cosines: the table of cosines, broadcast to the halves of ``source``, or to all of it.
        sines: the same for sines.
        interleaved: the layout.
        full: whether the tables have a column for each element, not only one per pair.
    """

    source: ir.Value
    cosines: ir.Value
    sines: ir.Value
    interleaved: bool
    full: bool


class FuseRope(ir.passes.InPlacePass):
    """Replaces a decomposed rotary embedding by RotaryEmbedding of opset 23, or onnxruntime's.

    Tensors are (batch, heads, steps, length). onnxruntime's own operator takes one table for all samples only.
    """

    def __init__(self, operators: Operators) -> None:
        """Takes the operators that may be used."""
        super().__init__()
        self._operators = operators

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at every Add, Concat and Reshape that may end a rotary embedding."""
        standard = opset_of(model) >= _FIRST_OPSET
        if not self._operators.rotary_embedding or not (standard or self._operators.onnxruntime):
            return ir.passes.PassResult(model, modified=False)
        writer = _Writer(model, standard=standard)
        modified = False
        for node in list(model.graph):
            rope = find_rope(node)
            if rope is not None and writer.write(node, rope):
                modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def find_rope(node: ir.Node) -> Rope | None:
    """Returns the rotary embedding whose result ``node`` makes."""
    if node.domain != "" or len(node.outputs) != 1:
        return None
    found = None
    if node.op_type == "Add":
        found = _rotated(node)
    elif node.op_type in ("Concat", "Reshape", "Flatten"):
        found = _direct(node.outputs[0])
    return found if found is not None and found.source.shape is not None and len(found.source.shape) == _RANK else None


def _rotated(node: ir.Node) -> Rope | None:
    """Recognizes x * cos + join(-second half of x, first half of x) * sin."""
    for plain, turned in _orders(node):
        for value, cosines in _products(plain):
            for other, sines in _products(turned):
                halves = joined(other)
                if halves is None:
                    continue
                second = _negated(halves.parts[0])
                parts = None if second is None else (part_of(halves.parts[1]), part_of(second))
                if parts is None or not _fit(parts, value, interleaved=halves.interleaved):
                    continue
                if all(is_doubled(table, interleaved=halves.interleaved) for table in (cosines, sines)):
                    return Rope(source=value, cosines=cosines, sines=sines, interleaved=halves.interleaved, full=True)
    return None


def _direct(value: ir.Value) -> Rope | None:
    """Recognizes join(a * cos - b * sin, b * cos + a * sin), where a and b are the halves of x."""
    halves = joined(value)
    if halves is None:
        return None
    real, imaginary = halves.parts[0].producer(), halves.parts[1].producer()
    if real is None or imaginary is None or imaginary.op_type != "Add":
        return None
    for first, cosines, second, sines in _differences(real):
        a, b = part_of(first), part_of(second)
        if a is None or not _fit((a, b), a.source, interleaved=halves.interleaved):
            continue
        wanted = {frozenset((_key(second), _key(cosines))), frozenset((_key(first), _key(sines)))}
        found = {frozenset((_key(left), _key(right))) for term in imaginary.inputs for left, right in _products(term)}
        if found == wanted:
            return Rope(source=a.source, cosines=cosines, sines=sines, interleaved=halves.interleaved, full=False)
    return None


def _differences(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value, ir.Value, ir.Value]]:
    """Yields a, c, b and s for every way to read a node as a * c - b * s."""
    if node.op_type == "Sub":
        for first, cosines in _products(node.inputs[0]):
            for second, sines in _products(node.inputs[1]):
                yield first, cosines, second, sines
    elif node.op_type == "Add":
        for plain, turned in _orders(node):
            for first, cosines in _products(plain):
                for second, negative in _products(turned):
                    table = _negated(negative)
                    if table is not None:
                        yield first, cosines, second, table


def _orders(node: ir.Node) -> tuple[tuple[ir.Value | None, ir.Value | None], ...]:
    left, right = node.inputs
    return (left, right), (right, left)


def _products(value: ir.Value | None) -> Iterator[tuple[ir.Value, ir.Value]]:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Mul" or producer.domain != "":
        return
    left, right = producer.inputs
    if left is not None and right is not None:
        yield left, right
        yield right, left


def _negated(value: ir.Value) -> ir.Value | None:
    producer = value.producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "Neg" and producer.domain == "" else None


def _key(value: ir.Value) -> object:
    """Returns a key that is equal for equal values, since the halves may be sliced separately for each use."""
    return part_of(value) or value


def _fit(parts: tuple[object, object], source: ir.Value, *, interleaved: bool) -> bool:
    wanted = (Part(source=source, index=index, interleaved=interleaved) for index in (0, 1))
    return parts == tuple(wanted)


class _Writer:
    """Writes operators for rotary embeddings, and the tables that they take, once for all that share them."""

    def __init__(self, model: ir.Model, *, standard: bool) -> None:
        self._model = model
        self._standard = standard
        self._names = Names(model.graph)
        self._tables: dict[tuple[ir.Value, object], ir.Value] = {}

    def write(self, node: ir.Node, rope: Rope) -> bool:
        dims, length = dims_of(rope.source), last_length(rope.source)
        if dims is None or length is None or rope.source.dtype is None:
            return False
        tables = [
            table
            for table in (rope.cosines, rope.sines)
            if table.dtype == rope.source.dtype and self._fits(table, dims, rope)
        ]
        if len(tables) != 2:
            return False
        cosines, sines = (self._table(table, node, dims[0], rope) for table in tables)
        attributes = {"interleaved": int(rope.interleaved)}
        if self._standard:
            replace(node, "RotaryEmbedding", [rope.source, cosines, sines], attributes)
            return True
        start = self._constant("positions", np.zeros(1, np.int64))
        replace(node, "RotaryEmbedding", [rope.source, start, cosines, sines], attributes, domain=ONNXRUNTIME_DOMAIN)
        use_onnxruntime(self._model)
        return True

    def _fits(self, table: ir.Value, dims: tuple[Length | None, ...], rope: Rope) -> bool:
        """Returns whether a table has a row for each step, and the same for all heads."""
        found = dims_of(table)
        width = dims[-1] if rope.full else Length((last_length(rope.source) or 0) // 2)
        if found is None or not 2 <= len(found) <= _RANK or found[-1] != width or found[-2] != dims[-2]:
            return False
        batch = found[0] if len(found) == _RANK else Length(1)
        heads = found[-3] if len(found) > 2 else Length(1)
        same = batch == dims[0] if self._standard else batch == Length(1)
        return heads == Length(1) and (same or batch == Length(1))

    def _table(self, table: ir.Value, node: ir.Node, batch: Length | None, rope: Rope) -> ir.Value:
        """Returns a table as the operator takes it: of half the length, for each sample or for all."""
        key = (table, (batch, rope.full, rope.interleaved))
        if key not in self._tables:
            self._tables[key] = self._made(table, node, batch, rope)
        return self._tables[key]

    def _made(self, table: ir.Value, node: ir.Node, batch: Length | None, rope: Rope) -> ir.Value:
        half = (last_length(rope.source) or 0) // 2
        found = dims_of(table)
        if rope.full:
            end, step = (half, 1) if not rope.interleaved else (2 * half, 2)
            bounds = [
                self._constant(name, np.asarray([number], np.int64))
                for name, number in (("start", 0), ("end", end), ("axis", -1), ("step", step))
            ]
            table = self._node(node, "Slice", [table, *bounds])
        if not self._standard:
            return self._node(node, "Reshape", [table, self._constant("shape", np.asarray([-1, half], np.int64))])
        own = found is not None and len(found) == _RANK and found[0] == batch
        shape = np.asarray([0 if own else 1, -1, half], np.int64)
        table = self._node(node, "Reshape", [table, self._constant("shape", shape)])
        if own or batch == Length(1):
            return table
        samples = self._node(node, "Shape", [rope.source], {"start": 0, "end": 1})
        ones = self._constant("ones", np.ones(2, np.int64))
        wanted = self._node(node, "Concat", [samples, ones], {"axis": 0})
        return self._node(node, "Expand", [table, wanted])

    def _node(
        self, before: ir.Node, op_type: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None
    ) -> ir.Value:
        made = ir.node(op_type, inputs, attributes or {})
        made.outputs[0].name = self._names.free(f"{before.name or 'rope'}_{op_type.lower()}")
        kind = inputs[0].dtype if op_type != "Shape" else ir.DataType.INT64
        made.outputs[0].type = None if kind is None else ir.TensorType(kind)
        self._model.graph.insert_before(before, made)
        return made.outputs[0]

    def _constant(self, name: str, array: npt.NDArray[np.int64]) -> ir.Value:
        return add_constant(self._model.graph, f"rope_{name}", array, names=self._names)
