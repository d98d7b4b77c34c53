"""Explains why onnxruntime's CPU provider leaves a node of a QDQ graph in float, and how to change that.

The conditions are those of its QDQ selectors, and are covered by tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.node_form import reason_to_skip_move
from qtool.backends.qdq_placement.operators import FLOAT_TYPES, OPERATORS
from qtool.graph.constants import constant_array, is_constant

# The first version that moves these operators' values as integers.
_INTEGERS_SINCE: Mapping[str, str] = {"DepthToSpace": "1.22"}
# onnxruntime's own tolerance for the scale of a bias relative to that of the products.
_SCALE_TOLERANCE = 0.01
_WIDE = (ir.DataType.INT16, ir.DataType.UINT16)
_FLOAT8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
_LOOSEN = "drop the --include or --exclude that leaves it out, or pass --max-float 0"


@dataclass(frozen=True, slots=True)
class FloatReason:
    """The reason why a node stays float.

    Attributes:
        reason: the condition of an integer kernel that it does not meet.
        fix: how to change that, with the option of ``qtool quantize`` where there is one.
    """

    reason: str
    fix: str


def reason_for_float(node: ir.Node) -> FloatReason:
    """Returns the first condition of an integer kernel that ``node`` does not meet."""
    known = (
        _precision_reason(node)
        or _width_reason(node)
        or _input_reason(node)
        or _type_reason(node)
        or _output_reason(node)
    )
    return known or _unknown(node)


def _precision_reason(node: ir.Node) -> FloatReason | None:
    for value in node.inputs[:2]:
        if value is not None and value.dtype in FLOAT_TYPES and value.dtype not in (None, ir.DataType.FLOAT):
            return FloatReason(
                f"it computes {value.dtype}; integer kernels start from float32",
                "quantize the model in float32: convert it without --fp16 and --bf16",
            )
    return None


def reads_foreign_types(node: ir.Node) -> bool:
    """Returns whether a node reads integers of 16 bits, or 8-bit floats, with which no kernel computes here."""
    return any(value is not None and _stored_type(value) in (*_WIDE, *_FLOAT8) for value in node.inputs)


def _width_reason(node: ir.Node) -> FloatReason | None:
    if not reads_foreign_types(node):
        return None
    if any(value is not None and _stored_type(value) in _FLOAT8 for value in node.inputs):
        return FloatReason(
            "it reads 8-bit floats, which GPUs multiply: here it computes in float between Q and DQ",
            "quantize for this processor: --activation-type u8 and the target of a CPU",
        )
    return FloatReason(
        "its integers have 16 bits, for NPUs: here it computes in float between Q and DQ",
        "quantize for this processor: --activation-type u8 and the target of a CPU",
    )


def _input_reason(node: ir.Node) -> FloatReason | None:
    positions = OPERATORS[node.op_type].data_inputs
    for index in range(len(node.inputs)) if positions is None else positions:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or _dequantize(value) is not None:
            continue
        if is_constant(value):
            return FloatReason(f"its weights '{value.name}' are float", f"quantize it: {_LOOSEN}")
        producer = value.producer()
        if producer is None:
            return FloatReason(f"its input '{value.name}' comes from the model's input", f"quantize it: {_LOOSEN}")
        return FloatReason(
            f"its input '{value.name}' comes from {producer.op_type} in float", _fix_for_producer(node, producer)
        )
    if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2:
        bias = node.inputs[2]
        if bias is not None and _dequantize(bias) is None:
            return FloatReason("its bias is float instead of int32", "quantize for a CPU: --target auto, x86 or arm64")
        if bias is not None and not _fits_products(node, bias):
            return FloatReason(
                "its bias does not have the scale of its products",
                "quantize the float model again with `qtool quantize`",
            )
    return None


def _fits_products(node: ir.Node, bias: ir.Value) -> bool:
    """Returns whether a dequantized bias has the scale of the products that it is added to, where all are constant."""
    scales = []
    for value in (node.inputs[0], node.inputs[1], bias):
        producer = None if value is None else _dequantize(value)
        scale = None if producer is None else constant_array(producer.inputs[1])
        if scale is None:
            return True
        scales.append(scale)
    activation, weight, own = scales
    return bool(np.allclose(own, activation * weight, rtol=_SCALE_TOLERANCE, atol=0.0))


def _fix_for_producer(node: ir.Node, producer: ir.Node) -> str:
    if producer.op_type == "Sum" and len(producer.inputs) == 1:
        return f"it was kept float: {_LOOSEN}"  # a Sum of one tensor has no other purpose
    if producer.op_type in OPERATORS:
        return f"quantize '{producer.name}' too: {_LOOSEN}"
    return f"onnxruntime has no integer {producer.op_type}: replace it in the model, or --exclude '{node.name}'"


def _type_reason(node: ir.Node) -> FloatReason | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    types = [_stored_type(value) for value in node.inputs[:2]]
    if types == [ir.DataType.INT8, ir.DataType.UINT8]:
        return FloatReason(
            "there is no kernel for signed activations with unsigned weights", "quantize with --weight-type s8"
        )
    if any(kind not in (ir.DataType.INT8, ir.DataType.UINT8) for kind in types if kind is not None):
        return FloatReason("only 8-bit integers have a kernel", "quantize the float model again with `qtool quantize`")
    return None


def _output_reason(node: ir.Node) -> FloatReason | None:
    if not OPERATORS[node.op_type].needs_integer_output:
        return None
    for output in node.outputs:
        value = output
        while True:
            if value.is_graph_output():
                return FloatReason(
                    f"its output '{value.name}' is an output of the model",
                    "remove it from the model's outputs, or quantize the float model with `qtool quantize`",
                )
            uses = list(value.uses())
            if len(uses) == 1 and uses[0].node.op_type in ("Relu", "Clip") and uses[0].idx == 0:
                value = uses[0].node.outputs[0]
                continue
            break
        others = [use.node for use in uses if use.node.op_type != "QuantizeLinear"]
        if others:
            return FloatReason(f"its output is read in float by {others[0].op_type}", _fix_for_reader(node, others[0]))
        if len(uses) != 1:
            return (
                FloatReason("its output is quantized more than once", "quantize for a CPU: --target auto, x86 or arm64")
                if uses
                else FloatReason("nothing reads its output", "remove the node from the model")
            )
    return None


def _fix_for_reader(node: ir.Node, reader: ir.Node) -> str:
    if reader.op_type in OPERATORS:
        return f"quantize '{reader.name}' too: {_LOOSEN}"
    return f"let '{reader.name}' read it after Q and DQ, as `qtool quantize` does, or --exclude '{node.name}'"


def _unknown(node: ir.Node) -> FloatReason:
    form = reason_to_skip_move(node)
    if form is not None:
        return FloatReason(form, f"change the model, or --exclude '{node.name}'")
    if _stored_type(node.inputs[0]) == ir.DataType.INT8:
        return FloatReason(
            "on x86, onnxruntime has no kernel for s8 activations that it cannot rewrite as u8",
            "quantize with --activation-type u8",
        )
    if node.op_type in _INTEGERS_SINCE:
        return FloatReason(
            f"this onnxruntime moves {node.op_type} in float",
            f"install onnxruntime {_INTEGERS_SINCE[node.op_type]} or newer",
        )
    return FloatReason(
        f"this onnxruntime does not fuse {node.op_type} here",
        f"try another onnxruntime, or avoid its conversions with --exclude '{node.name}'",
    )


def _dequantize(value: ir.Value) -> ir.Node | None:
    producer = value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _stored_type(value: ir.Value | None) -> ir.DataType | None:
    producer = None if value is None else _dequantize(value)
    source = None if producer is None else producer.inputs[0]
    return None if source is None else source.dtype
