"""Explains why OpenVINO leaves a node of a QDQ model in float, and how to change that.

The conditions are those of its low-precision transformations
(https://docs.openvino.ai/2025/documentation/openvino-extensibility/openvino-plugin-library/advanced-guides/low-precision-transformations.html)
and of the CPU plugin, as the executed graphs show them, and are covered by tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.openvino.session import ExecutedLayer
from qtool.backends.qdq_placement.operators import FLOAT_TYPES, OPERATORS, Kind
from qtool.graph.constants import constant_array, is_constant

_LOOSEN = "drop the --include or --exclude that leaves it out, or pass --max-float 0"
_AGAIN = "quantize the float model again with `qtool quantize --target openvino`"
_INTEGER_OPERATORS = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantize")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class FloatReason:
    """The reason why a node stays float.

    Attributes:
        reason: what keeps it from an integer kernel.
        fix: how to change that, with the option of ``qtool quantize`` where there is one.
    """

    reason: str
    fix: str


def reason_for_float(node: ir.Node, layer: ExecutedLayer | None) -> FloatReason:
    """Returns the first condition of an integer kernel that ``node``, which ``layer`` runs, does not meet."""
    if computes_integers(node):
        return FloatReason(
            f"OpenVINO takes {node.op_type} apart and computes it in float, which is slower than the float model",
            "quantize the float model with --scheme static --target openvino",
        )
    known = _precision_reason(node) or _input_reason(node) or _type_reason(node)
    return known or _unknown(node, layer)


def computes_integers(node: ir.Node) -> bool:
    """Returns whether an operator has integer arithmetic itself, as in dynamic quantization."""
    return node.op_type.startswith(_INTEGER_OPERATORS) and node.op_type != "DynamicQuantizeLinear"


def reads_integers(node: ir.Node) -> bool:
    """Returns whether all that a node multiplies or moves comes from DQ, maybe through nodes that only move values."""
    return not computes_integers(node) and _input_reason(node) is None


def _precision_reason(node: ir.Node) -> FloatReason | None:
    for value in node.inputs[:2]:
        if value is not None and value.dtype in FLOAT_TYPES and value.dtype not in (None, ir.DataType.FLOAT):
            return FloatReason(
                f"it computes {value.dtype}; integer kernels start from float32",
                "quantize the model in float32: convert it without --fp16 and --bf16",
            )
    return None


def _input_reason(node: ir.Node) -> FloatReason | None:
    operator = OPERATORS.get(node.op_type)
    positions = (0, 1) if operator is None else operator.data_inputs
    for value in node.inputs if positions is None else (node.inputs[place] for place in positions):
        if value is None or _dequantize(_moved_from(value)) is not None:
            continue
        if is_constant(value):
            return FloatReason(f"its weights '{value.name}' are float", f"quantize it: {_LOOSEN}")
        producer = value.producer()
        came = "from the model's input" if producer is None else f"from {producer.op_type}"
        return FloatReason(f"its input '{value.name}' comes {came} without Q and DQ", f"quantize it: {_LOOSEN}")
    return None


def _type_reason(node: ir.Node) -> FloatReason | None:
    if node.op_type not in _LAYERS:
        return None
    stored = [_stored(value) for value in node.inputs[:2]]
    if any(kind not in (ir.DataType.INT8, ir.DataType.UINT8) for kind, _ in stored if kind is not None):
        return FloatReason("only 8-bit integers have a kernel", _AGAIN)
    (activation, zero), (weight, weight_zero) = stored
    if weight == ir.DataType.UINT8 or weight_zero:
        return FloatReason("its second input is not symmetric s8", _AGAIN)
    if node.op_type == "ConvTranspose" and zero:
        return FloatReason("a ConvTranspose takes only activations whose zero point is 0", _AGAIN)
    if node.op_type == "Conv" and activation == ir.DataType.INT8:
        return FloatReason("without AMX a Conv takes only u8 activations", "quantize with --activation-type u8")
    return None


def _unknown(node: ir.Node, layer: ExecutedLayer | None) -> FloatReason:
    if layer is None:
        return FloatReason("OpenVINO has merged it into another node", "nothing: it takes no time of its own")
    where = f"OpenVINO runs it as {layer.kind} in {layer.precision}"
    if len(layer.originals) > 1 and layer.kind == "Subgraph":
        where += f", fused with {len(layer.originals) - 1} other nodes"
    return FloatReason(where, f"avoid its conversions with --exclude '{node.name}'")


def _moved_from(value: ir.Value) -> ir.Value:
    """Goes back through operators that only move values."""
    while (producer := value.producer()) is not None and producer.inputs and producer.inputs[0] is not None:
        operator = OPERATORS.get(producer.op_type) if producer.domain == "" else None
        if operator is None or operator.kind is not Kind.MOVING:
            break
        value = producer.inputs[0]
    return value


def _dequantize(value: ir.Value) -> ir.Node | None:
    producer = value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _stored(value: ir.Value | None) -> tuple[ir.DataType | None, bool]:
    """Returns the type of the integers that a value is read from, and whether one of their zero points is not 0."""
    producer = None if value is None else _dequantize(_moved_from(value))
    if producer is None or producer.inputs[0] is None:
        return None, False
    zeros = constant_array(producer.inputs[2]) if len(producer.inputs) > 2 else None
    return producer.inputs[0].dtype, zeros is not None and bool(zeros.any())
