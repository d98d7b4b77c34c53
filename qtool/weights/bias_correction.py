"""Bias correction: removes the shift that rounded weights cause in a layer's mean output.

A layer whose weights W became W' computes W'x + b instead of Wx + b: its mean error is (W' - W) E[x], which a new bias
b + (W - W') E[x] corrects, at no cost at run time. Source: M. Nagel et al., Data-Free Quantization Through
Weight Equalization and Bias Correction (ICCV 2019), section 4.2, with E[x] measured on data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.calib.affine import dequantize
from qtool.calib.statistics import TensorStatistics
from qtool.graph.constants import add_constant, constant_array, integer_attribute, sole_consumer
from qtool.graph.names import Names
from qtool.plan import Plan
from qtool.weights.round_to_nearest import QuantizedWeight


def correct_biases(
    model: ir.Model,
    plan: Plan,
    weights: Mapping[str, QuantizedWeight],
    statistics: Mapping[str, TensorStatistics],
    *,
    given: Collection[str] = (),
) -> dict[str, float]:
    """Corrects the bias of every planned layer whose input has channel means; ``model`` still has its float weights.

    Layers in ``given`` are skipped: their biases were found in another way.

    Returns:
        By node name, the largest correction of an output channel's mean.
    """
    nodes = {node.name: node for node in model.graph}
    names = Names(model.graph)
    corrected = {}
    for tensor, weight_plan in plan.weights.items():
        for name in weight_plan.nodes:
            if name in given:
                continue
            node = nodes[name]
            change = _mean_change(node, tensor, weights[tensor], statistics)
            if change is None:
                continue
            place = bias_place(node, change.size)
            if place is None:
                continue
            reader, index, bias = place
            stored = reader.inputs[index]
            if stored is not None and stored.name in plan.weights:
                continue  # its Add runs on integers that are rounded already
            new = (bias - change).astype(np.float32)
            value = add_constant(model.graph, f"{node.name}_corrected_bias", new, names=names)
            reader.replace_input_with(index, value)
            corrected[name] = float(np.abs(change).max())
    return corrected


def set_biases(model: ir.Model, biases: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Sets new biases, (output channels,), of the named layers of a float model, in place."""
    if not biases:
        return
    names = Names(model.graph)
    for node in list(model.graph):
        bias = biases.get(node.name or "")
        place = None if bias is None else bias_place(node, bias.size)
        if bias is not None and place is not None:
            reader, index, _ = place
            value = add_constant(model.graph, f"{node.name}_fitted_bias", bias, names=names)
            reader.replace_input_with(index, value)


def _mean_change(
    node: ir.Node, tensor: str, weight: QuantizedWeight, statistics: Mapping[str, TensorStatistics]
) -> npt.NDArray[np.float64] | None:
    """Returns (W' - W) E[x], float64, (output channels,), or None where the layer has no channel means."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    source, value = node.inputs[0], node.inputs[1]
    original = constant_array(value)
    if source is None or value is None or value.name != tensor or original is None:
        return None
    seen = statistics.get(source.name or "")
    means = None if seen is None else seen.channel_means
    if means is None or original.ndim < 2:
        return None
    rounding = dequantize(weight.integers, weight.params).astype(np.float64) - original
    return _applied(node, rounding, means)


def _applied(
    node: ir.Node, weight: npt.NDArray[np.float64], means: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64] | None:
    """Returns the output of a layer with ``weight`` for an input that is ``means`` at every position."""
    if node.op_type == "Conv":
        groups = integer_attribute(node, "group", 1)
        per_channel = weight.sum(axis=tuple(range(2, weight.ndim))).reshape(groups, -1, weight.shape[1])
        if means.size != groups * weight.shape[1]:
            return None
        result: npt.NDArray[np.float64] = np.einsum("goi,gi->go", per_channel, means.reshape(groups, -1)).reshape(-1)
        return result
    if weight.ndim != 2:
        return None
    matrix = weight.T if node.op_type == "Gemm" and integer_attribute(node, "transB", 0) else weight
    return None if means.size != matrix.shape[0] else means @ matrix


def bias_place(node: ir.Node, channels: int) -> tuple[ir.Node, int, npt.NDArray[Any]] | None:
    """Returns the node and input index that hold a layer's bias, with the bias broadcast over its channels."""
    if node.op_type == "MatMul":
        reader = sole_consumer(node.outputs[0])
        if reader is None or reader.op_type != "Add" or reader.domain != "":
            return None
        index = 1 if reader.inputs[0] is node.outputs[0] else 0
    else:
        reader, index = node, 2
    bias = constant_array(reader.inputs[index]) if len(reader.inputs) > index else None
    # A constant that varies over rows is not a channel bias.
    if bias is None or not (bias.size == 1 or (bias.size == channels and bias.shape[-1] == channels)):
        return None
    return reader, index, np.broadcast_to(bias.reshape(-1).astype(np.float64), (channels,))
