"""Reads and replaces the packed integers of MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array
from qtool.graph.unpacked_product import PACKED_DOMAINS
from qtool.graph.weight_records import WeightRecord, record_of
from qtool.qdq.packed_blocks import packed, packed_weight
from qtool.qdq.remove_blocks import block_weight, packed_source, table_weight
from qtool.qdq.stored_integers import StoredIntegers
from qtool.weights.blocks.quantization import BlockWeight

PACKED_LAYERS = frozenset({"MatMulNBits", "GatherBlockQuantized"})


def is_packed(node: ir.Node) -> bool:
    """Returns whether a node computes with packed integers in blocks."""
    return node.domain in PACKED_DOMAINS and node.op_type in PACKED_LAYERS


def packed_integers(node: ir.Node) -> StoredIntegers | None:
    """Returns the integers of a packed layer, unpacked, (outputs, inputs); None for a form that is not read.

    That is a weight in another order (``g_idx``), float zero points, or a table whose rows are not packed bytes.
    """
    table = node.op_type == "GatherBlockQuantized"
    weight = table_weight(node) if table else block_weight(node)
    value = packed_source(node.inputs[0 if table else 1])
    scale = constant_array(node.inputs[2])
    if weight is None or value is None or scale is None:
        return None
    return StoredIntegers(
        value=value,
        integers=weight.integers,
        scale=scale.reshape(weight.scales.shape),
        zero=weight.zero_points.astype(np.float64),
        axis=1,
        block=weight.grid.length(weight.integers.shape[1]),
        bits=weight.grid.bits,
        signed=False,
    )


def packed_record(stored: StoredIntegers) -> WeightRecord | None:
    """Returns the record of changes of packed integers."""
    return record_of(stored.value, stored.integers.shape)


def replace_packed(nodes: tuple[ir.Node, ...], weight: BlockWeight) -> None:
    """Stores other integers, scales and zero points for nodes that share one packed weight.

    Nodes that are not among ``nodes`` keep the old ones; symmetric weights keep their zero points.
    """
    source = packed_source(_weight(nodes[0]))
    if source is None:
        raise AssertionError(nodes)
    old = constant_array(source)
    if old is None:
        raise AssertionError(source)
    table = any(node.op_type == "GatherBlockQuantized" for node in nodes)
    bits = weight.grid.bits
    stored = packed(weight.integers, bits) if table and old.ndim == 2 else packed_weight(weight)
    if _readers(source) <= set(nodes) and stored.size == old.size:
        source.const_value = ir.tensor(np.ascontiguousarray(stored.reshape(old.shape)), name=source.name)
    else:
        _copied(nodes, source, weight)
    _replace(nodes, 2, weight.scales)
    if not weight.grid.symmetric:
        _replace(nodes, 3, packed(weight.zero_points, bits))


def _weight(node: ir.Node) -> ir.Value | None:
    return node.inputs[0 if node.op_type == "GatherBlockQuantized" else 1]


def _readers(source: ir.Value) -> set[ir.Node]:
    """Returns the nodes that read packed bytes, also behind a Reshape."""
    found = set()
    for use in source.uses():
        behind = use.node.op_type == "Reshape" and use.idx == 0
        found |= {reader.node for reader in use.node.outputs[0].uses()} if behind else {use.node}
    return found


def _copied(nodes: tuple[ir.Node, ...], source: ir.Value, weight: BlockWeight) -> None:
    graph = nodes[0].graph
    if not isinstance(graph, ir.Graph):
        raise AssertionError(nodes)
    for kind in sorted(PACKED_LAYERS):
        own = [node for node in nodes if node.op_type == kind]
        if own:
            rows = kind == "GatherBlockQuantized"
            stored = packed(weight.integers, weight.grid.bits) if rows else packed_weight(weight)
            copy = add_constant(graph, source.name or "weight", stored)
            copy.metadata_props.update(source.metadata_props)
            for node in own:
                node.replace_input_with(0 if rows else 1, copy)


def _replace(nodes: tuple[ir.Node, ...], index: int, array: npt.NDArray[Any]) -> None:
    """Stores other scales or zero points, in the type and shape of the old ones."""
    graph = nodes[0].graph
    if not isinstance(graph, ir.Graph):
        raise AssertionError(nodes)
    for value in dict.fromkeys(node.inputs[index] for node in nodes):
        old = constant_array(value)
        if value is None or old is None:
            raise AssertionError(nodes)
        new = np.ascontiguousarray(array.astype(old.dtype).reshape(old.shape))
        mine = [node for node in nodes if node.inputs[index] is value]
        if {use.node for use in value.uses()} <= set(nodes):
            value.const_value = ir.tensor(new, name=value.name)
            continue
        copy = add_constant(graph, value.name or "scales", new)
        for node in mine:
            node.replace_input_with(index, copy)
