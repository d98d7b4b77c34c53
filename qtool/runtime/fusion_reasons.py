"""Says why onnxruntime's CPU provider leaves a node of a QDQ graph in float.

The conditions are those of its QDQ selectors; tests pin them.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.passes.constants import is_constant
from qtool.placement.operators import FLOAT_TYPES, OPERATORS


def reason_for_float(node: ir.Node) -> str:
    """Returns the first condition for an integer kernel that ``node`` misses."""
    known = _precision_reason(node) or _input_reason(node) or _type_reason(node) or _output_reason(node)
    return known or _unknown(node)


def _precision_reason(node: ir.Node) -> str | None:
    for value in node.inputs[:2]:
        if value is not None and value.dtype in FLOAT_TYPES and value.dtype not in (None, ir.DataType.FLOAT):
            return f"it computes {value.dtype}; integer kernels start from float32"
    return None


def _input_reason(node: ir.Node) -> str | None:
    positions = OPERATORS[node.op_type].data_inputs
    for index in range(len(node.inputs)) if positions is None else positions:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or _dequantize(value) is not None:
            continue
        if is_constant(value):
            return f"its weights '{value.name}' are float"
        maker = value.producer()
        source = "the model's input" if maker is None else f"{maker.op_type} in float"
        return f"its input '{value.name}' comes from {source}"
    if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2:
        bias = node.inputs[2]
        if bias is not None and _dequantize(bias) is None:
            return "its bias is float instead of int32"
    return None


def _type_reason(node: ir.Node) -> str | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    types = [_stored_type(value) for value in node.inputs[:2]]
    if types == [ir.DataType.INT8, ir.DataType.UINT8]:
        return "there is no kernel for signed activations with unsigned weights"
    if any(kind not in (ir.DataType.INT8, ir.DataType.UINT8) for kind in types if kind is not None):
        return "only 8-bit integers have a kernel"
    return None


def _output_reason(node: ir.Node) -> str | None:
    if not OPERATORS[node.op_type].needs_integer_output:
        return None
    for output in node.outputs:
        value = output
        while True:
            if value.is_graph_output():
                return f"its output '{value.name}' is an output of the model"
            uses = list(value.uses())
            if len(uses) == 1 and uses[0].node.op_type in ("Relu", "Clip") and uses[0].idx == 0:
                value = uses[0].node.outputs[0]
                continue
            break
        others = [use.node.op_type for use in uses if use.node.op_type != "QuantizeLinear"]
        if others:
            return f"its output is read in float by {others[0]}"
        if len(uses) != 1:
            return "its output is quantized more than once" if uses else "nothing reads its output"
    return None


def _unknown(node: ir.Node) -> str:
    if _stored_type(node.inputs[0]) == ir.DataType.INT8:
        return "on x86, onnxruntime has no kernel for s8 activations that it cannot rewrite as u8"
    return f"this onnxruntime does not fuse {node.op_type} here"


def _dequantize(value: ir.Value) -> ir.Node | None:
    maker = value.producer()
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _stored_type(value: ir.Value | None) -> ir.DataType | None:
    maker = None if value is None else _dequantize(value)
    source = None if maker is None else maker.inputs[0]
    return None if source is None else source.dtype
