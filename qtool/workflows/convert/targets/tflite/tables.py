"""Dequantizes embedding tables that are stored as integers before rows are gathered from them, not behind that."""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.constants import constant_array, integer_attribute, sole_consumer

_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8)


def dequantize_before_gather(model: ir.Model) -> int:
    """Swaps Gather and the DequantizeLinear behind it where a table of 8 bits has one scale; returns how many.

    The rows are the same numbers. LiteRT's converter keeps the table as integers where the rows are quantized too, and
    as floats elsewhere. ``model`` is modified.
    """
    found = 0
    for node in list(model.graph):
        if node.op_type != "Gather" or node.domain != "":
            continue
        table, rows = node.inputs[0], node.outputs[0]
        reader = sole_consumer(rows)
        if table is None or constant_array(table) is None or table.dtype not in _INTEGERS or reader is None:
            continue
        scale = constant_array(reader.inputs[1]) if reader.op_type == "DequantizeLinear" else None
        if scale is None or scale.size != 1 or integer_attribute(reader, "block_size", 0):
            continue
        moved = ir.node("DequantizeLinear", [table, *reader.inputs[1:]], name=f"{node.name}_table")
        moved.outputs[0].name = f"{node.name}_table_dequantized"
        moved.outputs[0].type, moved.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), table.shape
        model.graph.insert_before(node, moved)
        node.replace_input_with(0, moved.outputs[0])
        rows.type = ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(reader.outputs[0], rows, replace_graph_outputs=True)
        name = reader.outputs[0].name
        model.graph.remove(reader, safe=True)
        rows.name = name
        found += 1
    return found
