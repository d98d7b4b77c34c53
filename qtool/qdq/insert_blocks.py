"""Writes layers whose weights are integers in blocks: as MatMulNBits, or as DequantizeLinear in front of the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, has_rows_of_outputs, reads_rows
from qtool.graph.names import Names
from qtool.graph.unpacked_product import (
    CUT_DOMAIN,
    EXACT_LEVEL,
    PACKED_DOMAIN,
    UNPACKED_BITS,
    UNPACKED_DOMAIN,
    settle_unpacked_products,
)
from qtool.graph.weight_records import Rearranged, record_steps
from qtool.plan import WeightOnlyPlan
from qtool.qdq.packed_blocks import packed, packed_weight
from qtool.weights.blocks.choices import WeightFormat
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import BlockWeight

# MatMulNBits has no weights without blocks: one scale an output is repeated for blocks that every version computes.
_BLOCK_OF_CHANNELS = 128
_STORED = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_STORED_SYMMETRIC = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
# The first opset whose DequantizeLinear has blocks and 4 bits.
BLOCK_OPSET = 21


def insert_blocks(
    model: ir.Model,
    plan: WeightOnlyPlan,
    weights: Mapping[str, BlockWeight],
    *,
    form: WeightFormat,
    levels: Mapping[str, int],
    unpacks: bool = True,
) -> ir.Model:
    """Replaces the weights of every MatMul and Gemm of ``plan`` in place, and returns ``model``.

    Args:
        model: a prepared model.
        plan: what to quantize.
        weights: integers by the name of every weight in the plan.
        form: what is written.
        levels: the accuracy level of MatMulNBits, by node; 0 where it is missing.
        unpacks: whether float products with weights of 8 bits have these unpacked as the model loads, which is fast
            and takes the memory of float weights; see ``qtool.graph.unpacked_product``.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    nodes = {node.name: node for node in model.graph}
    writer = _Writer(model.graph, unpacks=unpacks)
    for tensor, item in plan.weights.items():
        readers = [nodes[name] for name in item.nodes]
        if form is WeightFormat.NBITS:
            writer.packed(readers, values[tensor], weights[tensor], levels)
        else:
            writer.dequantized(readers, values[tensor], weights[tensor])
    if form is WeightFormat.NBITS:
        model.opset_imports.setdefault(PACKED_DOMAIN, 1)
        settle_unpacked_products(model)
    return model


class _Writer:
    """Replaces layers of one graph; new values get names that are free in it."""

    def __init__(self, graph: ir.Graph, *, unpacks: bool) -> None:
        self._graph = graph
        self._unpacks = unpacks
        self._names = Names(graph)
        self._order = {node: position for position, node in enumerate(graph)}

    def packed(
        self, readers: Sequence[ir.Node], value: ir.Value, weight: BlockWeight, levels: Mapping[str, int]
    ) -> None:
        """Replaces all layers that read one weight by MatMulNBits, which share the packed tensor."""
        weight = _with_blocks(weight)
        grid, (outputs, inputs) = weight.grid, weight.integers.shape
        tables = [node for node in readers if reads_rows(node)]
        integers = packed(weight.integers, grid.bits) if tables else packed_weight(weight)
        stored = self._constant(value, "quantized", integers)
        turned = has_rows_of_outputs(readers[0])
        record_steps(stored, value, *(() if turned else (Rearranged(shape=(inputs, outputs), order=(1, 0)),)))
        scales = self._constant(value, "scales", weight.scales)
        zeros = None if grid.symmetric else self._constant(value, "zero_points", packed(weight.zero_points, grid.bits))
        for node in tables:
            self._table(node, stored, scales, zeros, grid, inputs)
        if tables and len(tables) < len(readers):
            # One tensor serves both where rows are whole blocks.
            whole = inputs % grid.length(inputs) == 0
            blocks = self._constant(value, "blocks", packed_weight(weight)) if not whole else None
            stored = blocks or self._in_blocks(stored, outputs, scales)
        for node in [node for node in readers if node not in tables]:
            level = levels.get(node.name or "", EXACT_LEVEL)
            unpacked = self._unpacks and level == EXACT_LEVEL and grid.bits == UNPACKED_BITS
            whole = inputs % grid.length(inputs) == 0
            domain = (UNPACKED_DOMAIN if whole else CUT_DOMAIN) if unpacked else PACKED_DOMAIN
            if unpacked and zeros is None:
                # A function has no input that may be left out; one number stands for all.
                zeros = self._constant(value, "zero_points", np.array([[grid.middle]], np.uint8))
            attributes = {
                "K": inputs,
                "N": outputs,
                "bits": grid.bits,
                "block_size": grid.length(inputs),
                "accuracy_level": level,
            }
            given = [stored, scales, zeros]
            self._multiply(node, given, attributes, domain)
        self._drop(value)

    def _multiply(
        self, node: ir.Node, packed_inputs: Sequence[ir.Value | None], attributes: Mapping[str, int], domain: str
    ) -> None:
        """Replaces a product by MatMulNBits of a domain; a bias is added behind the function, which has none."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        within = domain == PACKED_DOMAIN
        given = [node.inputs[0], *packed_inputs, None, bias if within else None]
        while given[-1] is None:
            given.pop()
        product = ir.node("MatMulNBits", given, dict(attributes), domain=domain, name=node.name)
        product.metadata_props.update(node.metadata_props)
        new = [product]
        if bias is not None and not within:
            product.outputs[0].name = self._names.free(f"{node.outputs[0].name}_without_bias")
            new.append(ir.node("Add", [product.outputs[0], bias], name=self._names.for_node(f"{node.name}_bias")))
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], new, list(node.outputs), new[-1].outputs)

    def _table(
        self,
        node: ir.Node,
        stored: ir.Value,
        scales: ir.Value,
        zeros: ir.Value | None,
        grid: BlockGrid,
        columns: int,
    ) -> None:
        """Replaces a Gather of rows by GatherBlockQuantized."""
        given = [stored, node.inputs[1], scales, *(() if zeros is None else (zeros,))]
        attributes = {
            "bits": grid.bits,
            "block_size": grid.length(columns),
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        rows = ir.node("GatherBlockQuantized", given, attributes, domain=PACKED_DOMAIN, name=node.name)
        rows.metadata_props.update(node.metadata_props)
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], [rows], list(node.outputs), rows.outputs)

    def _in_blocks(self, table: ir.Value, outputs: int, scales: ir.Value) -> ir.Value:
        """Returns the packed rows of a table in the shape in which MatMulNBits reads them; they stay one tensor."""
        stored, blocks = constant_array(table), constant_array(scales)
        if stored is None or blocks is None:
            raise AssertionError("both have just been stored")
        shape = np.array([outputs, blocks.shape[1], stored.size // blocks.size], np.int64)
        target = add_constant(self._graph, f"{table.name}_block_shape", shape, names=self._names)
        node = ir.node("Reshape", [table, target], name=self._names.for_node(f"{table.name}_Reshape"))
        node.outputs[0].name, node.outputs[0].dtype = self._names.free(f"{table.name}_blocks"), ir.DataType.UINT8
        node.outputs[0].shape = ir.Shape(shape.tolist())
        self._graph.insert_before(self._graph[0], node)
        return node.outputs[0]

    def dequantized(self, readers: Sequence[ir.Node], value: ir.Value, weight: BlockWeight) -> None:
        """Lets all layers that read one weight read a DequantizeLinear of its integers."""
        grid, (outputs, inputs) = weight.grid, weight.integers.shape
        turned = has_rows_of_outputs(readers[0])
        integers, scales, zeros = weight.integers, weight.scales, weight.zero_points
        kind = _STORED[grid.bits]
        if grid.symmetric:
            # Without a zero point of its own, zero is the integer 0.
            kind, integers = _STORED_SYMMETRIC[grid.bits], (integers.astype(np.int16) - grid.middle).astype(np.int8)
        if not turned:
            integers, scales, zeros = integers.T, scales.T, zeros.T
        attributes = {"axis": 1 if turned else 0, "block_size": grid.length(inputs)}
        if grid.block is None:
            attributes = {"axis": 0 if turned else 1}
            scales, zeros = scales.reshape(-1), zeros.reshape(-1)
        stored = self._typed(value, "quantized", integers, kind)
        record_steps(stored, value)
        given = [stored, self._constant(value, "scales", scales)]
        if not grid.symmetric:
            given.append(self._typed(value, "zero_points", zeros, kind))
        node = ir.node("DequantizeLinear", given, attributes, name=self._names.for_node(f"{value.name}_dequantize"))
        floats = node.outputs[0]
        floats.name, floats.dtype = self._names.free(f"{value.name}_dequantized"), ir.DataType.FLOAT
        floats.shape = ir.Shape((outputs, inputs) if turned else (inputs, outputs))
        self._graph.insert_before(min(readers, key=self._order.__getitem__), node)
        for reader in readers:
            reader.replace_input_with(0 if reads_rows(reader) else 1, floats)
        self._drop(value)

    def _constant(self, value: ir.Value, role: str, array: np.ndarray) -> ir.Value:
        return add_constant(self._graph, f"{value.name}_{role}", array, names=self._names)

    def _typed(self, value: ir.Value, role: str, array: np.ndarray, kind: ir.DataType) -> ir.Value:
        """Stores integers of a type that numpy may not have; two of 4 bits share a byte."""
        name = self._names.free(f"{value.name}_{role}")
        tensor = ir.Tensor(np.ascontiguousarray(array).astype(kind.numpy()), dtype=kind, name=name)
        stored = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(kind))
        self._graph.register_initializer(stored)
        return stored

    def _drop(self, value: ir.Value) -> None:
        if not value.uses() and not value.is_graph_output() and value.name is not None:
            self._graph.initializers.pop(value.name, None)


def _with_blocks(weight: BlockWeight) -> BlockWeight:
    """Returns a weight with one scale an output as one with blocks, which repeat it."""
    if weight.grid.block is not None:
        return weight
    grid = BlockGrid(bits=weight.grid.bits, block=_BLOCK_OF_CHANNELS, symmetric=weight.grid.symmetric)
    blocks = -(-weight.integers.shape[1] // _BLOCK_OF_CHANNELS)
    return BlockWeight(
        integers=weight.integers,
        scales=np.repeat(weight.scales, blocks, axis=1),
        zero_points=np.repeat(weight.zero_points, blocks, axis=1),
        grid=grid,
    )
