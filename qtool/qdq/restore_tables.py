"""Turns embedding tables that are stored as integers, and dequantized behind the Gather, into floats again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute, sole_consumer
from qtool.graph.names import Names

_AXES = 2


def restore_table(graph: ir.Graph, gather: ir.Node, dequantize: ir.Node, names: Names) -> bool:
    """Lets ``gather`` read floats, with what ``dequantize`` and a multiplication by constants behind it would compute.

    Returns:
        Whether it did; not where the table is no constant matrix of integers, or something else reads its rows.
    """
    source, rows = gather.inputs[0], gather.outputs[0]
    integers = constant_array(source)
    if source is None or integers is None or integers.ndim != _AXES or integer_attribute(gather, "axis", 0) != 0:
        return False
    if sole_consumer(rows) is not dequantize or dequantize.outputs[0].is_graph_output():
        return False
    table = _dequantized(integers, dequantize)
    if table is None:
        return False
    last = dequantize
    columns = _columns_behind(dequantize, integers.shape[1])
    if columns is not None:
        last, factors = columns
        table = table * factors
    name = (source.name or "table").removesuffix("_quantized")
    gather.replace_input_with(0, _stored(graph, name, table, names))
    rows.type = ir.TensorType(ir.DataType.FLOAT)
    for use in list(last.outputs[0].uses()):
        use.node.replace_input_with(use.idx, rows)
    return True


def _dequantized(integers: npt.NDArray[np.generic], dequantize: ir.Node) -> npt.NDArray[np.float32] | None:
    """Computes (q - zero_point) * scale, with one scale or one a column, as the operator does behind the Gather."""
    scale = constant_array(dequantize.inputs[1])
    zero_value = dequantize.inputs[2] if len(dequantize.inputs) > 2 else None
    zero = np.zeros((), np.int8) if zero_value is None else constant_array(zero_value)
    if scale is None or zero is None or integer_attribute(dequantize, "block_size", 0):
        return None
    if scale.size > 1 and (scale.size != integers.shape[1] or not _is_last_axis(dequantize)):
        return None
    steps = (integers.astype(np.int32) - zero.astype(np.int32)).astype(np.float32)
    floats: npt.NDArray[np.float32] = steps * scale.astype(np.float32)
    return floats


def _is_last_axis(dequantize: ir.Node) -> bool:
    axis, rows = integer_attribute(dequantize, "axis", 1), dequantize.inputs[0]
    rank = None if rows is None or rows.shape is None else len(rows.shape)
    return axis == -1 or (rank is not None and axis == rank - 1)


def _columns_behind(dequantize: ir.Node, columns: int) -> tuple[ir.Node, npt.NDArray[np.float32]] | None:
    """Returns a multiplication of all columns by a factor each that is all that reads the floats, and the factors."""
    multiply = sole_consumer(dequantize.outputs[0])
    if multiply is None or multiply.op_type != "Mul" or multiply.outputs[0].is_graph_output():
        return None
    other = multiply.inputs[1] if multiply.inputs[0] is dequantize.outputs[0] else multiply.inputs[0]
    factors = constant_array(other)
    return None if factors is None or factors.shape != (columns,) else (multiply, factors)


def _stored(graph: ir.Graph, name: str, table: npt.NDArray[np.float32], names: Names) -> ir.Value:
    """Returns the table, which a Gather before this one may have stored already."""
    known = constant_array(graph.initializers.get(name))
    if known is not None and known.shape == table.shape and bool((known == table).all()):
        return graph.initializers[name]
    return add_constant(graph, name, table, names=names)
