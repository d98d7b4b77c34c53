"""Puts the blocks of a GGUF file into a graph, to the bit, in the place of their dequantized values.

The weights become one or two products of four bits with the zero point 8, which onnxruntime has fast kernels for; what
is left of a block is one number, which is multiplied by the sum of its inputs:

====  ====================================================
Q4_0  d (q - 8)
Q4_1  d (q - 8) + (m + 8 d)
Q8_0  16 d (h - 8) + d (l - 8) + 8 d, for q + 128 = 16 h + l
====  ====================================================

Zero points in float32, which would say the same of Q4_1, make one token 200 times slower (45 ms instead of 0.2 ms for
576 × 1536 weights on AVX2), and MatMulNBits of eight bits without ``accuracy_level`` 17 times. Scales stay float16 in
the file, and onnxruntime computes what follows from them once, when it opens the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from qtool.formats.weights.gguf_blocks import BLOCK, AffineRows
from qtool.graph.constants import add_constant, constant_array
from qtool.graph.names import Names
from qtool.llm.gguf_rows import GgufRows
from qtool.qdq.packed_blocks import packed

_DOMAIN = "com.microsoft"
_BITS = 4
_MIDDLE = 8
# Activations of decoders are (batch, length, features).
_AXES = 3


def insert_gguf_blocks(model: ir.Model, rows: GgufRows) -> tuple[str, ...]:
    """Replaces every MatMul and Gather of a weight that ``rows`` has; returns the names of these nodes.

    Products of a transposed table are replaced as well, and share its integers.
    """
    writer = _Writer(model.graph)
    replaced: list[str] = []
    for value, readers in _weights(model.graph):
        products = [node for node, _ in readers if node.op_type == "MatMul"]
        tables = [node for node, _ in readers if node.op_type == "Gather"]
        floats = constant_array(value)
        if floats is None or floats.dtype != np.float32 or floats.ndim != 2:
            continue
        turned = any(turned for _, turned in readers)
        found = rows.matching(np.ascontiguousarray(floats.T if not turned else floats))
        if found is None:
            continue
        writer.replace(value, found, products=products, tables=tables)
        replaced += [node.name or node.op_type for node, _ in readers]
    writer.finish()
    if replaced:
        model.opset_imports.setdefault(_DOMAIN, 1)
        common.RemoveUnusedNodesPass()(model)
    return tuple(replaced)


def _weights(graph: ir.Graph) -> list[tuple[ir.Value, list[tuple[ir.Node, bool]]]]:
    """Returns each initializer with all nodes that read it, where these are products and tables of one orientation.

    Of each node, it is told whether it reads outputs as rows.
    """
    found = []
    for value in list(graph.initializers.values()):
        readers = [reader for use in value.uses() for reader in _readers(use.node, value)]
        if readers and all(reader is not None for reader in readers):
            known = [reader for reader in readers if reader is not None]
            if len({turned for _, turned in known}) == 1:
                found.append((value, known))
    return found


def _readers(node: ir.Node, value: ir.Value) -> list[tuple[ir.Node, bool] | None]:
    axis, order = node.attributes.get("axis"), node.attributes.get("perm")
    if node.op_type == "MatMul" and node.inputs[1] is value and node.inputs[0] is not value:
        return [(node, False)]
    if node.op_type == "Gather" and node.inputs[0] is value and (axis is None or axis.as_int() == 0):
        return [(node, True)]
    if node.op_type == "Transpose" and (order is None or list(order.as_ints()) == [1, 0]):
        # A table that is turned for a product, or a matrix that is turned to be a table.
        behind = [reader for use in node.outputs[0].uses() for reader in _readers(use.node, node.outputs[0])]
        return [None if reader is None else (reader[0], not reader[1]) for reader in behind]
    return [None]


class _Writer:
    """Replaces nodes of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._names = graph, Names(graph)
        self._constants: list[ir.Node] = []
        self._sums: dict[ir.Value, ir.Value] = {}

    def replace(
        self, value: ir.Value, rows: AffineRows, *, products: Sequence[ir.Node], tables: Sequence[ir.Node]
    ) -> None:
        """Lets the nodes compute with the stored blocks."""
        outputs, blocks = rows.scales.shape
        stem = value.name or "weight"
        half = add_constant(self._graph, f"{stem}_scales", rows.scales, names=self._names)
        scales = self._at_start("Cast", [half], f"{stem}_scales_float", {"to": ir.DataType.FLOAT})
        planes = self._planes(stem, rows, scales, blocks, flat=bool(tables))
        rest = self._rest(stem, rows, scales)
        for node in tables:
            self._table(node, planes, rest, blocks)
        if products and tables:
            shape = np.array([outputs, blocks, BLOCK * _BITS // 8], np.int64)
            planes = [(self._shaped(stored, shape, f"{stem}_blocks"), factor) for stored, factor in planes]
        if products and rest is not None:
            rest = self._at_start("Transpose", [rest], f"{stem}_rest_transposed", {"perm": [1, 0]})
        for node in products:
            self._product(node, planes, rest, (outputs, blocks))

    def finish(self) -> None:
        """Puts what is computed of constants in front of all other nodes."""
        if self._constants:
            self._graph.insert_before(self._graph[0], self._constants)

    def _planes(
        self, stem: str, rows: AffineRows, scales: ir.Value, blocks: int, *, flat: bool
    ) -> list[tuple[ir.Value, ir.Value]]:
        """Stores integers of four bits, with the scales of each."""
        if rows.bits == _BITS:
            parts = [(rows.integers, scales)]
        else:
            sixteen = add_constant(self._graph, f"{stem}_sixteen", np.array(16, np.float32), names=self._names)
            high = self._at_start("Mul", [scales, sixteen], f"{stem}_high_scales")
            parts = [(rows.integers >> np.uint8(_BITS), high), (rows.integers & np.uint8(15), scales)]
        found = []
        for integers, factor in parts:
            stored = packed(integers, _BITS)
            stored = stored if flat else stored.reshape(len(stored), blocks, -1)
            found.append((add_constant(self._graph, f"{stem}_quantized", stored, names=self._names), factor))
        return found

    def _rest(self, stem: str, rows: AffineRows, scales: ir.Value) -> ir.Value | None:
        """Returns what is added to every element of a block, float32 (rows, blocks); None for nothing."""
        if rows.bits == _BITS and rows.minima is None:
            return None
        eight = add_constant(self._graph, f"{stem}_eight", np.array(_MIDDLE, np.float32), names=self._names)
        rest = self._at_start("Mul", [scales, eight], f"{stem}_rest")
        if rows.minima is None:
            return rest
        half = add_constant(self._graph, f"{stem}_minima", rows.minima, names=self._names)
        minima = self._at_start("Cast", [half], f"{stem}_minima_float", {"to": ir.DataType.FLOAT})
        return self._at_start("Add", [minima, rest], f"{stem}_rest_with_minima")

    def _product(
        self, node: ir.Node, planes: list[tuple[ir.Value, ir.Value]], rest: ir.Value | None, shape: tuple[int, int]
    ) -> None:
        outputs, blocks = shape
        given = node.inputs[0]
        if given is None:
            raise AssertionError("a product has two inputs")
        attributes = {"K": blocks * BLOCK, "N": outputs, "bits": _BITS, "block_size": BLOCK}
        new = [ir.node("MatMulNBits", [given, *plane], attributes, domain=_DOMAIN) for plane in planes]
        if rest is not None:
            new.append(ir.node("MatMul", [self._block_sums(given, node, blocks), rest]))
        self._summed(node, new)

    def _block_sums(self, value: ir.Value, reader: ir.Node, blocks: int) -> ir.Value:
        """Returns the sum over each block of activations, which all their readers share."""
        if value not in self._sums:
            shape = self._int_constant(f"{value.name}_block_shape", [0] * (self._rank(value) - 1) + [blocks, BLOCK])
            apart = ir.node("Reshape", [value, shape])
            last = self._int_constant(f"{value.name}_block_axis", [-1])
            summed = ir.node("ReduceSum", [apart.outputs[0], last], {"keepdims": 0})
            maker = value.producer()
            for node, role in ((apart, "blocks"), (summed, "block_sums")):
                node.name = self._names.for_node(f"{value.name}_{role}")
                node.outputs[0].name = self._names.free(f"{value.name}_{role}")
            if maker is None:
                self._constants += [apart, summed]
            else:
                self._graph.insert_after(maker, [apart, summed])
            self._sums[value] = summed.outputs[0]
        return self._sums[value]

    def _table(
        self, node: ir.Node, planes: list[tuple[ir.Value, ir.Value]], rest: ir.Value | None, blocks: int
    ) -> None:
        indices = node.inputs[1]
        if indices is None:
            raise AssertionError("a table has indices")
        attributes = {"bits": _BITS, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        new = [
            ir.node("GatherBlockQuantized", [stored, indices, factor], attributes, domain=_DOMAIN)
            for stored, factor in planes
        ]
        if rest is not None:
            lead = [0] * (self._rank(node.outputs[0]) - 1)
            last = self._int_constant(f"{node.name}_last_axis", [-1])
            once = ir.node("Gather", [rest, indices], {"axis": 0})
            column = ir.node("Unsqueeze", [once.outputs[0], last])
            wide = self._int_constant(f"{node.name}_wide", [*[1] * (len(lead) + 1), BLOCK])
            spread = ir.node("Tile", [column.outputs[0], wide])
            whole = self._int_constant(f"{node.name}_row_shape", [*lead, blocks * BLOCK])
            flat = ir.node("Reshape", [spread.outputs[0], whole])
            before = [once, column, spread]
            for place, made in enumerate(before):
                made.name = self._names.for_node(f"{node.name}_rest_{place}")
                made.outputs[0].name = self._names.free(f"{node.outputs[0].name}_rest_{place}")
            self._graph.insert_before(node, before)
            new.append(flat)
        self._summed(node, new)

    def _summed(self, node: ir.Node, parts: list[ir.Node]) -> None:
        """Puts the sum of the outputs of ``parts`` in the place of what ``node`` computes."""
        output = node.outputs[0]
        made = [parts[0]]
        last = parts[0].outputs[0]
        for part in parts[1:]:
            total = ir.node("Add", [last, part.outputs[0]])
            made += [part, total]
            last = total.outputs[0]
        for place, new in enumerate(made):
            new.name = node.name if place == 0 else self._names.for_node(f"{node.name}_{new.op_type}")
            if new.outputs[0] is not last:
                new.outputs[0].name = self._names.free(f"{output.name}_{new.op_type}")
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], made, [output], [last])

    def _at_start(
        self,
        operator: str,
        inputs: list[ir.Value],
        name: str,
        attributes: Mapping[str, int | Sequence[int]] | None = None,
    ) -> ir.Value:
        """Computes a constant of constants."""
        node = ir.node(operator, inputs, attributes or {}, name=self._names.for_node(f"{name}_{operator}"))
        node.outputs[0].name = self._names.free(name)
        self._constants.append(node)
        return node.outputs[0]

    def _shaped(self, value: ir.Value, shape: npt.NDArray[np.int64], name: str) -> ir.Value:
        target = add_constant(self._graph, f"{name}_shape", shape, names=self._names)
        return self._at_start("Reshape", [value, target], name)

    def _int_constant(self, name: str, values: list[int]) -> ir.Value:
        return add_constant(self._graph, name, np.array(values, np.int64), names=self._names)

    @staticmethod
    def _rank(value: ir.Value) -> int:
        return _AXES if value.shape is None else len(value.shape)
