"""Whether the form of a node without weights has an integer kernel in onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.operators import LARGEST_ACTIVATION, Kind
from qtool.graph.constants import constant_array, is_constant
from qtool.passes.half.half_precision import NCHWC_DOMAIN

# Operators that stay float although there are kernels.
_BY_CHOICE: Mapping[str, str] = {
    "Softmax": "its exponential magnifies the rounding errors of its input",
}


def reason_to_skip_node(node: ir.Node, kind: Kind, data: Sequence[ir.Value | None]) -> str | None:
    """Returns why an operator that reads ``data`` cannot run on integers, or None when it can."""
    if any(value is None for value in data):
        return "an input is missing"
    if all(is_constant(value) for value in data):
        return "it reads constants only"
    if kind is Kind.MOVING:
        return reason_to_skip_move(node)
    for value in data:
        array = constant_array(value)
        if value is None or array is None:
            continue
        if value.dtype != ir.DataType.FLOAT:
            return f"it combines {value.dtype}, not float32"
        if not (np.abs(array) <= LARGEST_ACTIVATION).all():
            return f"its constant '{value.name}' holds NaN, or values as large as in masks"
    return None


def reason_without_kernel(operator: str, domain: str = "") -> str:
    """Returns why an operator that is in no table stays float."""
    if domain == NCHWC_DOMAIN:
        return "onnxruntime rewrote it for one processor (NCHWc); quantize the original model, not the optimized one"
    if domain:
        return f"onnxruntime has no integer kernel for {operator} of {domain}"
    return _BY_CHOICE.get(operator, f"onnxruntime has no integer kernel for {operator}")


def reason_to_skip_move(node: ir.Node) -> str | None:
    """Returns why a node of an operator that moves values cannot move integers, or None when it can."""
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        if mode is not None and mode.as_string() != "nearest":
            return f"onnxruntime resizes integers in nearest mode only, not {mode.as_string()}"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "it returns indices as well"
    return None
