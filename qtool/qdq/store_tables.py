"""Stores embedding tables as integers: what a Gather reads is dequantized behind it, a few rows at a time.

A DequantizeLinear in front of the Gather would turn the whole table into floats on every run. One scale a column costs
little noise, but onnxruntime's DequantizeLinear with many scales along the last axis takes four times as long as one
with a single scale and a multiplication by the columns' sizes, which is what is written here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.formats.scratch import kept_aside
from qtool.graph.constants import add_constant, constant_array, integer_attribute, is_constant
from qtool.graph.names import Names
from qtool.selection import NodeSelection

# Smaller ones are not worth two more nodes.
_SMALLEST_BYTES = 1 << 16
# Rows whose noise is more than a thousandth of them, on average, differ too much in size to share scales.
_LEAST_DB = 30.0
_HIGHEST = 127
# Rows that are looked at at once.
_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTable:
    """One table whose integers are in the graph now.

    Attributes:
        tensor: its name.
        shape: rows and columns.
        nodes: names of the Gathers that read it.
        noise_db: signal over noise of its rows, the noise of each taken relative to that row, in dB.
    """

    tensor: str
    shape: tuple[int, int]
    nodes: tuple[str, ...]
    noise_db: float


def has_tables(model: ir.Model, selection: NodeSelection) -> bool:
    """Returns whether ``model`` has a table that ``store_tables`` may store."""
    return any(_readers(value, selection) for value in model.graph.initializers.values())


def store_tables(model: ir.Model, selection: NodeSelection) -> tuple[StoredTable, ...]:
    """Stores every table that only Gathers read as INT8, and returns what was stored.

    Column j of a table W is W[i, j] ≈ q[i, j] / 127 · c[j], with c[j] the largest magnitude in it and q integers from
    -127 to 127.

    Args:
        model: the graph, changed in place.
        selection: which Gathers may read integers.
    """
    names = Names(model.graph)
    found = []
    for value in list(model.graph.initializers.values()):
        readers = _readers(value, selection)
        table = constant_array(value) if readers else None
        if table is None:
            continue
        sizes = np.maximum(table.max(axis=0), -table.min(axis=0))
        sizes = np.where(sizes > 0.0, sizes, 1.0).astype(np.float32)
        noise_db = _noise_db(table, sizes)
        if math.isnan(noise_db) or noise_db < _LEAST_DB:
            continue
        _store(model.graph, value, _integers(table, sizes), sizes, readers, names)
        found.append(
            StoredTable(
                tensor=value.name or "",
                shape=(table.shape[0], table.shape[1]),
                nodes=tuple(node.name or "" for node in readers),
                noise_db=noise_db,
            )
        )
    return tuple(found)


def _readers(value: ir.Value, selection: NodeSelection) -> tuple[ir.Node, ...]:
    """Returns the nodes that read a table; none where it is not a table, or other nodes read it."""
    stored = value.const_value
    if not is_constant(value) or stored is None or stored.dtype != ir.DataType.FLOAT:
        return ()
    if len(stored.shape) != 2 or stored.nbytes < _SMALLEST_BYTES or value.is_graph_output():
        return ()
    uses = value.uses()
    if not all(_reads_rows(use.node, use.idx, value.graph, selection) for use in uses):
        return ()
    return tuple(use.node for use in uses)


def _reads_rows(node: ir.Node, index: int, graph: ir.Graph | None, selection: NodeSelection) -> bool:
    return (
        node.op_type == "Gather"
        and node.domain == ""
        and index == 0
        and node.graph is graph
        and integer_attribute(node, "axis", 0) == 0
        and not node.outputs[0].is_graph_output()
        and selection.reason_to_skip(node) is None
    )


def _integers(table: npt.NDArray[np.float32], sizes: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    integers = np.empty(table.shape, np.int8)
    for start in range(0, table.shape[0], _ROWS):
        rows = table[start : start + _ROWS] * (_HIGHEST / sizes.astype(np.float64))
        integers[start : start + _ROWS] = np.rint(rows)
    return kept_aside(integers)


def _noise_db(table: npt.NDArray[np.float32], sizes: npt.NDArray[np.float32]) -> float:
    """Returns -10·log10 of the mean of |row - row'|² / |row|², over rows that are not zero."""
    shares = []
    for start in range(0, table.shape[0], _ROWS):
        rows = table[start : start + _ROWS].astype(np.float64)
        power = np.square(rows).sum(axis=1)
        given = _integers(table[start : start + _ROWS], sizes) * (sizes.astype(np.float64) / _HIGHEST)
        noise = np.square(rows - given).sum(axis=1)
        shares.append(noise[power > 0.0] / power[power > 0.0])
    every = np.concatenate(shares)
    mean = float(every.mean()) if every.size else 0.0
    return math.inf if mean == 0.0 else -10.0 * math.log10(mean)


def _store(
    graph: ir.Graph,
    value: ir.Value,
    integers: npt.NDArray[np.int8],
    sizes: npt.NDArray[np.float32],
    readers: tuple[ir.Node, ...],
    names: Names,
) -> None:
    name = value.name or "table"
    table = add_constant(graph, f"{name}_quantized", integers, names=names)
    scale = add_constant(graph, f"{name}_scale", np.array(1.0 / _HIGHEST, np.float32), names=names)
    zero = add_constant(graph, f"{name}_zero_point", np.zeros((), np.int8), names=names)
    columns = add_constant(graph, f"{name}_column_sizes", sizes, names=names)
    for node in readers:
        rows = node.outputs[0]
        node.replace_input_with(0, table)
        dequantize = ir.node(
            "DequantizeLinear", [rows, scale, zero], name=names.for_node(f"{node.name}_DequantizeLinear")
        )
        multiply = ir.node("Mul", [dequantize.outputs[0], columns], name=names.for_node(f"{node.name}_column_sizes"))
        outputs = (dequantize.outputs[0], f"{rows.name}_dequantized"), (multiply.outputs[0], f"{rows.name}_sized")
        for output, wanted in outputs:
            output.name, output.shape, output.dtype = names.free(wanted), rows.shape, ir.DataType.FLOAT
        rows.type = ir.TensorType(ir.DataType.INT8)  # setting its dtype would change that of clones, too
        for use in list(rows.uses()):
            use.node.replace_input_with(use.idx, multiply.outputs[0])
        dequantize.replace_input_with(0, rows)
        graph.insert_after(node, [dequantize, multiply])
    graph.initializers.pop(name)
