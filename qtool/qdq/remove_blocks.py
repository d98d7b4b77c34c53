"""Takes MatMulNBits and GatherBlockQuantized out of a graph: they become float products, and float tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qtool.graph.constants import add_constant, constant_array, integer_attribute
from qtool.graph.names import Names
from qtool.graph.unpacked_product import PACKED_DOMAIN, PACKED_DOMAINS, is_unpacked_product, settle_unpacked_products
from qtool.graph.weight_records import Rearranged, record_steps
from qtool.qdq.packed_blocks import unpacked, unpacked_weight
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import BlockWeight, Integers, Matrix


class RemoveBlocks(ir.passes.InPlacePass):
    """Replaces each MatMulNBits by MatMul, its bias by Add, and each GatherBlockQuantized by Gather.

    Nodes that share integers share the floats. Weights in another order (``g_idx``), float zero points, and blocks that
    do not follow each other in rows are left.
    """

    def __init__(self, only: Callable[[ir.Node], bool] | None = None) -> None:
        """Takes which nodes to replace; None for all."""
        self._only = only

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every node of that form."""
        remover = _Remover(model.graph)
        modified = False
        for node in [node for node in model.graph if self._only is None or self._only(node)]:
            if node.domain == PACKED_DOMAIN and node.op_type == "GatherBlockQuantized":
                modified = remover.table(node) or modified
            elif node.domain in PACKED_DOMAINS and node.op_type == "MatMulNBits":
                modified = remover.product(node) or modified
        if modified:
            common.RemoveUnusedNodesPass()(model)
            settle_unpacked_products(model)
        return ir.passes.PassResult(model, modified)


class _Remover:
    """Replaces nodes of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = Names(graph)
        self._rows: dict[ir.Value, ir.Value] = {}
        self._columns: dict[ir.Value, ir.Value] = {}

    def table(self, node: ir.Node) -> bool:
        """Lets a Gather read the dequantized rows; returns whether the node has the form for that."""
        weight = table_weight(node)
        stored = node.inputs[0]
        if weight is None or stored is None:
            return False
        if stored not in self._rows:
            self._rows[stored] = self._stored(stored, weight.dequantized(), turned=False)
        gather = ir.node("Gather", [self._rows[stored], node.inputs[1]], {"axis": 0}, name=node.name)
        self._replace(node, [gather])
        return True

    def product(self, node: ir.Node) -> bool:
        """Lets a MatMul read the dequantized weights; returns whether the node has the form for that."""
        weight, stored = block_weight(node), node.inputs[1]
        if weight is None or stored is None:
            return False
        reshape = stored.producer()
        table = None if reshape is None else reshape.inputs[0]
        if stored not in self._columns:
            if table is not None and table in self._rows:
                self._columns[stored] = self._turned(self._rows[table], node)
            else:
                self._columns[stored] = self._stored(table or stored, weight.dequantized(), turned=True)
        product = ir.node("MatMul", [node.inputs[0], self._columns[stored]], name=node.name)
        new = [product]
        bias = node.inputs[5] if len(node.inputs) > 5 else None
        if bias is not None:
            product.outputs[0].name = self._names.free(f"{node.outputs[0].name}_without_bias")
            new.append(ir.node("Add", [product.outputs[0], bias], name=self._names.for_node(f"{node.name}_bias")))
        self._replace(node, new)
        return True

    def _stored(self, value: ir.Value, floats: Matrix, *, turned: bool) -> ir.Value:
        stem = (value.name or "weight").removesuffix("_quantized")
        stored = add_constant(self._graph, stem, floats.T if turned else floats, names=self._names)
        steps = (Rearranged(shape=floats.shape, order=(1, 0)),) if turned else ()
        record_steps(stored, value, *steps, stands_for=floats.shape)
        return stored

    def _turned(self, rows: ir.Value, reader: ir.Node) -> ir.Value:
        node = ir.node("Transpose", [rows], {"perm": [1, 0]}, name=self._names.for_node(f"{rows.name}_Transpose"))
        node.outputs[0].name, node.outputs[0].dtype = self._names.free(f"{rows.name}_transposed"), ir.DataType.FLOAT
        self._graph.insert_before(reader, node)
        return node.outputs[0]

    def _replace(self, node: ir.Node, new: list[ir.Node]) -> None:
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], new, list(node.outputs), new[-1].outputs)


def block_weight(node: ir.Node) -> BlockWeight | None:
    """Returns the weight of a MatMulNBits; None where it is computed, or of a form that is not read."""
    given = [*node.inputs, *[None] * (6 - len(node.inputs))]
    stored, scales, zeros = constant_array(packed_source(given[1])), constant_array(given[2]), constant_array(given[3])
    if stored is None or scales is None or given[4] is not None or (given[3] is not None and zeros is None):
        return None
    if zeros is not None and zeros.dtype != np.uint8:
        return None
    inputs, outputs = integer_attribute(node, "K", 0), integer_attribute(node, "N", 0)
    length = integer_attribute(node, "block_size", 0)
    bits = integer_attribute(node, "bits", 4)
    if zeros is not None and is_unpacked_product(node) and zeros.size == 1 and zeros.item() == 1 << (bits - 1):
        zeros = None
    grid = BlockGrid(bits=bits, block=length, symmetric=zeros is None)
    blocks = -(-inputs // length)
    return BlockWeight(
        integers=unpacked_weight(stored.reshape(outputs, blocks, -1), grid, inputs),
        scales=scales.reshape(outputs, blocks).astype(np.float32),
        zero_points=_zero_points(zeros, grid, outputs, blocks),
        grid=grid,
    )


def table_weight(node: ir.Node) -> BlockWeight | None:
    """Returns the table of a GatherBlockQuantized whose bytes are packed rows; None for another form."""
    zero_value = node.inputs[3] if len(node.inputs) > 3 else None
    stored, scales, zeros = (constant_array(value) for value in (node.inputs[0], node.inputs[2], zero_value))
    if stored is None or scales is None or stored.dtype != np.uint8 or stored.ndim != 2 or scales.ndim != 2:
        return None
    if integer_attribute(node, "gather_axis", 0) != 0 or integer_attribute(node, "quantize_axis", 1) not in (1, -1):
        return None
    if zero_value is not None and (zeros is None or zeros.dtype != np.uint8):
        return None
    bits = integer_attribute(node, "bits", 4)
    grid = BlockGrid(bits=bits, block=integer_attribute(node, "block_size", 128), symmetric=zeros is None)
    rows, columns = stored.shape[0], stored.shape[1] * (8 // bits)
    return BlockWeight(
        integers=unpacked(stored, bits, columns),
        scales=scales.astype(np.float32),
        zero_points=_zero_points(zeros, grid, rows, scales.shape[1]),
        grid=grid,
    )


def packed_source(value: ir.Value | None) -> ir.Value | None:
    """Returns the value that stores the bytes in ``value``, also where a Reshape gives them another shape."""
    producer = None if value is None else value.producer()
    return value if producer is None or producer.op_type != "Reshape" else producer.inputs[0]


def _zero_points(zeros: Integers | None, grid: BlockGrid, outputs: int, blocks: int) -> Integers:
    if zeros is None:
        return np.full((outputs, blocks), grid.middle, np.uint8)
    return unpacked(zeros.reshape(outputs, -1), grid.bits, blocks)
