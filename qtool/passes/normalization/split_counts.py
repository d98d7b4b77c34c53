"""Gives Split the form of the model's opset, where constant folding wrote a newer one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.graph.names import Names

_COUNT_OPSET = 18
_INPUT_OPSET = 13


def write_lengths(model: ir.Model) -> None:
    """Replaces ``num_outputs``, which older opsets do not have, by lengths.

    All chunks but the last one have the same length: ⌈length / outputs⌉ (the operator's definition in opset 18).
    """
    opset = model.opset_imports.get("", _COUNT_OPSET)
    if opset >= _COUNT_OPSET:
        return
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Split" or node.domain or "num_outputs" not in node.attributes:
            continue
        lengths = _lengths(node)
        if lengths is None:
            continue
        del node.attributes["num_outputs"]
        if opset < _INPUT_OPSET:
            node.attributes["split"] = ir.AttrInt64s("split", lengths)
            continue
        name = Names(model.graph).free(f"{node.outputs[0].name}_lengths")
        constant = ir.Value(name=name, const_value=ir.tensor(np.array(lengths, np.int64), name=name))
        constant.shape, constant.type = ir.Shape([len(lengths)]), ir.TensorType(ir.DataType.INT64)
        model.graph.register_initializer(constant)
        node.resize_inputs(2)
        node.replace_input_with(1, constant)


def _lengths(node: ir.Node) -> list[int] | None:
    value, count = node.inputs[0], len(node.outputs)
    if value is None or value.shape is None or not count:
        return None
    length = value.shape[node.attributes.get_int("axis", 0)]
    if not isinstance(length, int):
        return None
    chunk = -(-length // count)
    return [*[chunk] * (count - 1), length - chunk * (count - 1)]
