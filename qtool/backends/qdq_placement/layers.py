"""Whether the form of a layer has an integer kernel in onnxruntime's CPU provider, and the plan of its weights."""

from __future__ import annotations

import onnx_ir as ir

from qtool.calib.granularity import Granularity, PerChannel, PerTensor
from qtool.calib.grid import Grid
from qtool.graph.constants import constant_array, integer_attribute, is_constant
from qtool.plan import WeightPlan
from qtool.schemes import Scheme

OUTPUT_OF_MODEL = "its output is an output of the model, which stays float; Conv runs on integers only between Q and DQ"


def reason_to_skip_layer(node: ir.Node) -> str | None:
    """Returns why a Conv, Gemm or MatMul cannot run on integers, or None when it can."""
    if any(value is None for value in node.inputs[:2]):
        return "an input is missing"
    check = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}[node.op_type]
    return check(node)


def weight_granularity(node: ir.Node, *, per_channel: bool) -> Granularity:
    """Returns how many scales the weight of a layer may have: one per output channel, or one."""
    weight = node.inputs[1]
    if not per_channel or weight is None or weight.shape is None:
        return PerTensor()
    if node.op_type == "Conv":
        return PerChannel(0)
    if node.op_type == "Gemm":
        return PerChannel(0 if integer_attribute(node, "transB", 0) else 1)
    # A batch of matrices has one row of scales at most, which all of them would have to share.
    return PerChannel(1) if len(weight.shape) == 2 else PerTensor()


def weight_reason(node: ir.Node) -> str | None:
    """Returns why the second input of a node cannot be stored as integer weights, or None when it can."""
    weight = node.inputs[1]
    if not is_constant(weight) or weight is None:
        return "its weights are computed at run time"
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weights are {weight.dtype}; integer kernels start from float32"
    return None


def product_reason(node: ir.Node) -> str | None:
    """Returns why the product that a Gemm or MatMul computes has no integer kernel, or None when it has one."""
    if node.op_type == "MatMul":
        return _matmul(node)
    if integer_attribute(node, "transA", 0):
        return "it transposes its activations (transA=1)"
    for name in ("alpha", "beta"):
        attribute = node.attributes.get(name)
        needed = name == "alpha" or _has_input(node, 2)
        if attribute is not None and needed and attribute.as_float() != 1.0:
            return f"its {name} is {attribute.as_float():g}; only 1 has an integer kernel"
    return None


def _conv(node: ir.Node) -> str | None:
    weights = weight_reason(node)
    if weights is not None:
        return weights
    if _has_input(node, 2) and not is_constant(node.inputs[2]):
        return "its bias is computed at run time"
    return None


def _gemm(node: ir.Node) -> str | None:
    reason = weight_reason(node) or product_reason(node)
    if reason is not None:
        return reason
    if not _has_input(node, 2):
        return None
    bias = constant_array(node.inputs[2])
    if bias is None:
        return "its bias is computed at run time"
    if bias.size not in (1, bias.shape[-1] if bias.ndim else 1):
        return "its bias differs from row to row"
    return None


def _matmul(node: ir.Node) -> str | None:
    for value in node.inputs:
        if value is None:
            return "an input is missing"
        if is_constant(value) and value.dtype != ir.DataType.FLOAT:
            return f"its weights are {value.dtype}; integer kernels start from float32"
        if value.shape is not None and len(value.shape) < 2:
            return "it multiplies by a vector"
        if value.dtype not in (None, ir.DataType.FLOAT):
            return f"it multiplies {value.dtype}, not float32"
    return None


def _has_input(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def agreed_weight(tensor: str, wishes: list[tuple[str, Grid, Granularity]], scheme: Scheme) -> WeightPlan:
    """Returns one plan for a shared weight: where its readers differ, the one that suits all of them."""
    grids, granularities = {wish[1] for wish in wishes}, {wish[2] for wish in wishes}
    return WeightPlan(
        tensor=tensor,
        grid=wishes[0][1] if len(grids) == 1 else next(wish[1] for wish in wishes if not wish[1].signed),
        granularity=granularities.pop() if len(granularities) == 1 else PerTensor(),
        nodes=tuple(dict.fromkeys(wish[0] for wish in wishes)),
        largest_pair=scheme.largest_pair,
    )
