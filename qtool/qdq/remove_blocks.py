"""Takes MatMulNBits out of a graph: it becomes a product with the dequantized weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qtool.graph.constants import add_constant, constant_array, integer_attribute
from qtool.graph.names import Names
from qtool.graph.weight_records import record_steps
from qtool.qdq.packed_blocks import unpacked, unpacked_weight
from qtool.weights.block_quantization import BlockGrid, BlockWeight


class RemoveBlocks(ir.passes.InPlacePass):
    """Replaces each MatMulNBits with stored weights by MatMul, and its bias by Add.

    Nodes that share integers share the floats. Those with weights in another order (``g_idx``) or float zero points
    are left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every node of that form."""
        names = Names(model.graph)
        known: dict[tuple[ir.Value | None, ...], ir.Value] = {}
        modified = False
        for node in list(model.graph):
            if node.op_type != "MatMulNBits" or node.domain != "com.microsoft":
                continue
            key = tuple(node.inputs[1:4])
            if key not in known:
                floats = block_weight(node)
                if floats is None:
                    continue
                stem = (node.inputs[1].name or "weight").removesuffix("_quantized") if node.inputs[1] else "weight"
                known[key] = add_constant(model.graph, stem, floats.dequantized().T, names=names)
                if node.inputs[1] is not None:
                    record_steps(known[key], node.inputs[1])
            _replace(model.graph, node, known[key], names)
            modified = True
        if modified:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def block_weight(node: ir.Node) -> BlockWeight | None:
    """Returns the weight of a MatMulNBits; None where it is computed, or of a form that is not read."""
    given = [*node.inputs, *[None] * (6 - len(node.inputs))]
    stored, scales, zeros = (constant_array(value) for value in given[1:4])
    if stored is None or scales is None or given[4] is not None or (given[3] is not None and zeros is None):
        return None
    if zeros is not None and zeros.dtype != np.uint8:
        return None
    inputs, outputs = integer_attribute(node, "K", 0), integer_attribute(node, "N", 0)
    length = integer_attribute(node, "block_size", 0)
    grid = BlockGrid(bits=integer_attribute(node, "bits", 4), block=length, symmetric=zeros is None)
    blocks = -(-inputs // length)
    middle = np.full((outputs, blocks), grid.middle, np.uint8)
    return BlockWeight(
        integers=unpacked_weight(stored.reshape(outputs, blocks, -1), grid, inputs),
        scales=scales.reshape(outputs, blocks).astype(np.float32),
        zero_points=middle if zeros is None else unpacked(zeros.reshape(outputs, -1), grid.bits, blocks),
        grid=grid,
    )


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value, names: Names) -> None:
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    product = ir.node("MatMul", [node.inputs[0], weight], name=node.name)
    new = [product]
    if bias is not None:
        product.outputs[0].name = names.free(f"{node.outputs[0].name}_without_bias")
        new.append(ir.node("Add", [product.outputs[0], bias], name=names.for_node(f"{node.name}_bias")))
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, list(node.outputs), new[-1].outputs)
