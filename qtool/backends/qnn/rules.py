"""The rules of Qualcomm's HTP, as onnxruntime's QNN provider meets them, as far as the graph alone shows them.

Sources, cited by the rules:

- provider: https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html
- tool: onnxruntime/quantization/execution_providers/qnn/quant_config.py, onnxruntime's own configuration for QNN
- axes: https://github.com/microsoft/onnxruntime/pull/21016
- blocks: https://github.com/onnxruntime/onnxruntime-qnn/issues/650
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.fixed_scales import FIXED
from qtool.backends.violations import (
    Conversion,
    Finding,
    Rule,
    all_nodes,
    channel_axis,
    comes_from_dequantize,
    conversions,
    weighted_layers,
)
from qtool.graph.constants import constant_array, is_constant

_AGAIN = "quantize the float model again with --target qnn"
_FLOAT_MODEL = "dequantize it (`qtool dequantize`), and quantize the float model with --target qnn"
_ACTIVATIONS = (ir.DataType.UINT8, ir.DataType.UINT16)
_WIDE = (ir.DataType.UINT16, ir.DataType.INT16)
_WEIGHTS = (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2)
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_FIRST_WITH_16_BITS = 21
_SCALE_TOLERANCE = 1e-4


def fixed_shapes(model: ir.Model) -> Iterator[Finding]:
    """Finds inputs with free lengths, each by the first node that reads it. Source: provider, Model requirements."""
    for value in model.graph.inputs:
        lengths = [] if value.shape is None else list(value.shape)
        is_fixed = value.shape is not None and all(isinstance(dim, int) and dim >= 0 for dim in lengths)
        if value.is_initializer() or is_fixed:
            continue
        reader = next((use.node for use in value.uses()), None)
        if reader is not None:
            dims = "unknown" if value.shape is None else ", ".join(map(str, value.shape))
            yield Finding(
                node=reader,
                problem=f"the input '{value.name}' has free lengths: ({dims})",
                fix="export the model with fixed shapes, a batch of 1 for example",
            )


def known_operators(model: ir.Model) -> Iterator[Finding]:
    """Finds control flow, and DynamicQuantizeLinear, which QNN has no form of.

    Source: provider ("Loops and Ifs are not supported"); https://github.com/microsoft/onnxruntime/issues/25334.
    """
    for node in all_nodes(model):
        if node.op_type in _CONTROL_FLOW:
            yield Finding(node=node, problem="control flow is not supported", fix="unroll it: qtool optimize")
        elif node.op_type == "DynamicQuantizeLinear":
            yield Finding(node=node, problem="scales that are computed at run time are not supported", fix=_FLOAT_MODEL)


def activation_types(model: ir.Model) -> Iterator[Finding]:
    """Finds activations that are not u8 or u16, which operators typically support. Source: provider."""
    for conversion in _activations(model):
        if conversion.dtype is not None and conversion.dtype not in _ACTIVATIONS:
            yield Finding(
                node=conversion.node,
                problem=f"'{conversion.data.name}' is {conversion.dtype}, and operators take UINT8 or UINT16",
                fix=f"{_AGAIN} --activation-type u16" if conversion.dtype in _WIDE else _AGAIN,
            )


def activation_scales(model: ir.Model) -> Iterator[Finding]:
    """Finds activations with several scales, or scales that are computed or not above 0. Source: provider, tool."""
    for conversion in conversions(model):
        if conversion.scale is None:
            yield Finding(node=conversion.node, problem="its scale is computed at run time", fix=_FLOAT_MODEL)
        elif not (conversion.scale > 0).all():
            yield Finding(node=conversion.node, problem="a scale is not above 0", fix=_AGAIN)
    for conversion in _activations(model):
        if conversion.axis is not None:
            yield Finding(
                node=conversion.node, problem="an activation has several scales, and may have one", fix=_AGAIN
            )


def weights(model: ir.Model) -> Iterator[Finding]:
    """Finds weights with a scale per channel that are not s8 around 0, or whose scales run along another axis.

    Source: tool (per channel for Conv on axis 0 and ConvTranspose on axis 1), axes, blocks. A MatMul of two dimensions
    becomes a fully connected layer; one with a batch of weights may have one scale only
    (https://github.com/onnxruntime/onnxruntime-qnn/pull/587).
    """
    for conversion in conversions(model):
        if not conversion.dequantizes or not conversion.is_weight:
            continue
        if conversion.dtype is not None and conversion.dtype not in _WEIGHTS:
            yield Finding(node=conversion.node, problem=f"the weight is {conversion.dtype}", fix=_AGAIN)
        if conversion.axis is None:
            continue
        if conversion.zero_point is not None and conversion.zero_point.any():
            yield Finding(node=conversion.node, problem="a weight with a scale per channel has zero points", fix=_AGAIN)
        if conversion.scale is not None and conversion.scale.ndim > 1:
            yield Finding(
                node=conversion.node, problem="scales of blocks run with activations of 16 bits only", fix=_AGAIN
            )
            continue
        yield from _misplaced(conversion)


def _misplaced(conversion: Conversion) -> Iterator[Finding]:
    for reader, place in conversion.readers:
        axis = channel_axis(reader) if place == 1 else None
        rank = None if conversion.data.shape is None else len(conversion.data.shape)
        if axis is not None and axis != conversion.axis:
            yield Finding(
                node=conversion.node,
                problem=f"the scales run on axis {conversion.axis}, the channels of '{reader.name}' on {axis}",
                fix=_AGAIN,
            )
        elif reader.op_type == "MatMul" and rank is not None and rank > 2:
            yield Finding(
                node=conversion.node, problem="a batch of weights has a scale per channel", fix=f"{_AGAIN} --per-tensor"
            )


def biases(model: ir.Model) -> Iterator[Finding]:
    """Finds biases that are not s32 around 0 with the product of the input's and the weight's scale.

    Source: tool, which makes them so; sums of products have that scale.
    """
    for layer in weighted_layers(model):
        made = [None if value is None else value.producer() for value in layer.inputs[:3]]
        if len(made) < 3 or any(node is None or node.op_type != "DequantizeLinear" for node in made):
            continue
        first, weight, bias = (node for node in made if node is not None)
        if bias.inputs[0] is None or bias.inputs[0].dtype != ir.DataType.INT32:
            found = None if bias.inputs[0] is None else bias.inputs[0].dtype
            yield Finding(node=bias, problem=f"the bias is {found}, not INT32", fix=_AGAIN)
            continue
        scales = [constant_array(node.inputs[1]) for node in (first, weight, bias)]
        if all(scale is not None for scale in scales):
            expected = np.asarray(scales[0], np.float64) * np.asarray(scales[1], np.float64)
            if not np.allclose(np.asarray(scales[2], np.float64), expected, rtol=_SCALE_TOLERANCE, atol=0.0):
                yield Finding(
                    node=bias, problem="its scale is not the product of the input's and the weight's", fix=_AGAIN
                )


def whole_groups(model: ir.Model) -> Iterator[Finding]:
    """Finds layers that are not a whole group of DequantizeLinear, operator and QuantizeLinear.

    Source: provider (only quantized models are supported): what stands outside of a group runs in float, where the chip
    has that, or on the CPU.
    """
    for layer in weighted_layers(model):
        quantized = [comes_from_dequantize(value) for value in layer.inputs[:2]]
        if not any(quantized):
            continue
        uses = list(layer.outputs[0].uses())
        if not all(quantized):
            what = "weight" if quantized[0] else "input"
            yield Finding(node=layer, problem=f"its {what} is float", fix=_AGAIN)
        elif layer.outputs[0].is_graph_output() or any(not _ends_group(use.node) for use in uses):
            yield Finding(node=layer, problem="what it computes is not quantized", fix=_AGAIN)


def _ends_group(node: ir.Node) -> bool:
    """Returns whether a Q, or a clamp before one, reads a layer."""
    if node.op_type in ("Relu", "Clip"):
        return all(use.node.op_type == "QuantizeLinear" for use in node.outputs[0].uses())
    return node.op_type == "QuantizeLinear"


def sixteen_bits(model: ir.Model) -> Iterator[Finding]:
    """Finds 16 bits where the standard's opset has none, and Sigmoid and Tanh with other scales than QNN's.

    Source: tool (``UseQDQContribOps`` below opset 21, ``_process_sigmoid``, ``_process_tanh``).
    """
    version = model.opset_imports.get("", 1)
    for conversion in conversions(model):
        if conversion.dtype not in _WIDE:
            continue
        if version < _FIRST_WITH_16_BITS and conversion.node.domain == "":
            yield Finding(
                node=conversion.node,
                problem=f"opset {version} has no {conversion.dtype} in it",
                fix=f"convert it: qtool convert --opset {_FIRST_WITH_16_BITS}",
            )
        maker = conversion.data.producer()
        wanted = None if maker is None else FIXED.get((maker.op_type, conversion.dtype is ir.DataType.INT16))
        if wanted is None or conversion.dequantizes or maker is None or conversion.scale is None:
            continue
        zero = 0 if conversion.zero_point is None else int(conversion.zero_point.reshape(-1)[0])
        if not np.isclose(float(conversion.scale.reshape(-1)[0]), wanted[0], rtol=1e-3) or zero != wanted[1]:
            yield Finding(
                node=conversion.node,
                problem=f"{maker.op_type} returns 16 bits of scale {wanted[0]:.6g} around {wanted[1]} only",
                fix=_AGAIN,
            )


def _activations(model: ir.Model) -> Iterator[Conversion]:
    for conversion in conversions(model):
        if not is_constant(conversion.data):
            yield conversion


RULES: Mapping[str, Rule] = {
    "fixed shapes": fixed_shapes,
    "known operators": known_operators,
    "activation types": activation_types,
    "activation scales": activation_scales,
    "weights": weights,
    "biases": biases,
    "whole groups": whole_groups,
    "sixteen bits": sixteen_bits,
}
