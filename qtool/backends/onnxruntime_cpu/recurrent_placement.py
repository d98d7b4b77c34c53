"""Which LSTM onnxruntime's CPU provider runs on integers, as DynamicQuantizeLSTM.

Its checks are those of
https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/contrib_ops/cpu/quantization/dynamic_quantize_lstm.cc:
constant weights of 8 bits, one scale a direction or one a row of the gates, whose zero points are zero where they are
signed. It has no attribute ``layout``. There is no such operator for GRU and RNN.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.kernel_order import kernel_order
from qtool.calib.granularity import PerChannel, PerTensor
from qtool.graph.constants import integer_attribute, is_constant
from qtool.plan import RecurrentPlan, WeightPlan
from qtool.schemes import S8_SYMMETRIC, DynamicScheme

WITHOUT_KERNEL = {
    "GRU": "onnxruntime quantizes the products inside LSTM at run time, and has no such kernel for GRU",
    "RNN": "onnxruntime quantizes the products inside LSTM at run time, and has no such kernel for RNN",
}
_WEIGHTS = (1, 2)
_WEIGHT_RANK = 3


def recurrent_reason(node: ir.Node) -> str | None:
    """Returns why an LSTM cannot become a DynamicQuantizeLSTM, or None when it can."""
    if integer_attribute(node, "layout", 0):
        return "its inputs have the batch first (layout=1), which onnxruntime's kernels do not take"
    for index in _WEIGHTS:
        weight = node.inputs[index]
        if weight is None or not is_constant(weight):
            return "its weights are computed at run time"
        if weight.dtype != ir.DataType.FLOAT:
            return f"its weights are {weight.dtype}; integer kernels start from float32"
        if weight.shape is None or len(weight.shape) != _WEIGHT_RANK or 0 in weight.shape.numpy():
            return "its weights are empty"
    return None


def recurrent_plan(node: ir.Node, scheme: DynamicScheme) -> RecurrentPlan:
    """Plans the two weights of an LSTM, each of which is the second factor of a product, direction by direction."""

    def weight(index: int) -> WeightPlan:
        value = node.inputs[index]
        return WeightPlan(
            tensor="" if value is None else value.name or "",
            grid=S8_SYMMETRIC,
            granularity=PerChannel(1) if scheme.per_channel else PerTensor(),
            nodes=(node.name or "",),
            largest_pair=scheme.largest_pair,
            orders=(kernel_order("MatMul", 2),),
        )

    return RecurrentPlan(inputs=weight(_WEIGHTS[0]), states=weight(_WEIGHTS[1]))
