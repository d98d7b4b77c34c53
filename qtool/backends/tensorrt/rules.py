"""TensorRT's rules for networks with explicit quantization, as far as the graph alone shows them.

Sources, cited by the rules:

- documentation: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
- Quantize layer: https://docs.nvidia.com/deeplearning/tensorrt/operators/docs/Quantize.html
- parser: QuantDequantLinearHelper in https://github.com/onnx/onnx-tensorrt/blob/main/onnxOpImporters.cpp
- operators: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qtool.backends.violations import (
    Finding,
    Rule,
    all_nodes,
    channel_axis,
    comes_from_dequantize,
    conversions,
    weighted_layers,
)
from qtool.graph.constants import is_constant

_AGAIN = "quantize the float model again with --target tensorrt"
_FLOAT_MODEL = "dequantize it (`qtool dequantize`), and quantize the float model with --target tensorrt"
# The parser has no importer for these.
_NO_IMPORTER = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QLinearConv", "QLinearMatMul"}
)
_TYPES = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1)
_FIRST_OPSET, _FIRST_WITH_AXIS = 10, 13


def signed_types(model: ir.Model) -> Iterator[Finding]:
    """Finds integers that are not signed 8 bits: the parser refuses UINT8; also INT4, FP8 and FP4 exist.

    A bias of INT32 is refused as well ("only activation types allowed as input to this layer",
    https://github.com/microsoft/onnxruntime/issues/14229); it stays float. Source: documentation, parser.
    """
    for conversion in conversions(model):
        if conversion.dtype is None or conversion.dtype in _TYPES:
            continue
        if conversion.is_bias:
            yield Finding(node=conversion.node, problem=f"the bias is {conversion.dtype}, not float", fix=_AGAIN)
        else:
            yield Finding(
                node=conversion.node,
                problem=f"'{conversion.data.name}': it is {conversion.dtype}, not INT8",
                fix=f"{_AGAIN} --activation-type e4m3" if conversion.dtype is ir.DataType.FLOAT8E5M2 else _AGAIN,
            )


def zero_points(model: ir.Model) -> Iterator[Finding]:
    """Finds zero points that are not 0: quantization is symmetric. Source: Quantize layer, parser."""
    for conversion in conversions(model):
        if conversion.zero_point is not None and conversion.zero_point.any():
            yield Finding(node=conversion.node, problem="its zero point is not 0", fix=_AGAIN)


def constant_scales(model: ir.Model) -> Iterator[Finding]:
    """Finds scales that are computed, or not above 0. Source: Quantize layer ("build-time constant"), parser."""
    for conversion in conversions(model):
        if conversion.scale is None:
            yield Finding(node=conversion.node, problem="its scale is computed at run time", fix=_FLOAT_MODEL)
        elif not (conversion.scale > 0).all():
            yield Finding(node=conversion.node, problem="a scale is not above 0", fix=_AGAIN)


def scales_per_channel(model: ir.Model) -> Iterator[Finding]:
    """Finds activations with several scales, and weights whose scales run along another axis than their channels.

    Source: parser ("Activations-quantization does not support per-axis quantization", and as many scales as output
    channels).
    """
    for conversion in conversions(model):
        if conversion.axis is None:
            continue
        if not is_constant(conversion.data) and not _comes_from_constant(conversion.data):
            yield Finding(
                node=conversion.node, problem="an activation has several scales, and may have one", fix=_AGAIN
            )
            continue
        for reader, place in conversion.readers:
            axis = channel_axis(reader) if place == 1 else None
            if axis is not None and axis != conversion.axis:
                yield Finding(
                    node=conversion.node,
                    problem=f"the scales run on axis {conversion.axis}, the channels of '{reader.name}' on {axis}",
                    fix=_AGAIN,
                )


def _comes_from_constant(value: ir.Value) -> bool:
    """Returns whether a value is a constant through a QuantizeLinear; weights may be stored as floats."""
    producer = value.producer()
    return producer is not None and producer.op_type == "QuantizeLinear" and is_constant(producer.inputs[0])


def known_operators(model: ir.Model) -> Iterator[Finding]:
    """Finds operators of integer arithmetic, and those of onnxruntime. Source: operators."""
    for node in all_nodes(model):
        if node.op_type in _NO_IMPORTER:
            yield Finding(node=node, problem="the parser does not know the operator", fix=_FLOAT_MODEL)
        elif node.domain == "com.microsoft" and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            yield Finding(
                node=node,
                problem="it is an operator of onnxruntime",
                fix="start from the model before `qtool optimize`",
            )


def quantized_inputs(model: ir.Model) -> Iterator[Finding]:
    """Finds layers that run in float, since a DequantizeLinear stands before one of their two inputs only.

    Source: documentation, Q/DQ Layer-Placement Recommendations: quantize all inputs of weighted operations.
    """
    for layer in weighted_layers(model):
        quantized = [comes_from_dequantize(value) for value in layer.inputs[:2]]
        if any(quantized) and not all(quantized):
            what = "weight" if quantized[0] else "input"
            yield Finding(
                node=layer,
                problem=f"its {what} is float, so all of it runs in float",
                fix=f"{_AGAIN}, or with --exclude",
            )


def opset(model: ir.Model) -> Iterator[Finding]:
    """Finds an opset without Q/DQ, or without their axis. Source: documentation, ONNX Support."""
    version = model.opset_imports.get("", _FIRST_OPSET)
    for conversion in conversions(model):
        if version < _FIRST_OPSET or (version < _FIRST_WITH_AXIS and conversion.axis is not None):
            needed = _FIRST_WITH_AXIS if conversion.axis is not None else _FIRST_OPSET
            yield Finding(
                node=conversion.node,
                problem=f"the opset is {version}, and this takes {needed}",
                fix=f"convert it: qtool convert --opset {needed}",
            )


RULES: Mapping[str, Rule] = {
    "signed types": signed_types,
    "zero points": zero_points,
    "constant scales": constant_scales,
    "scales per channel": scales_per_channel,
    "known operators": known_operators,
    "quantized inputs": quantized_inputs,
    "opset": opset,
}
