"""Folds BatchNormalization, and constant multiplications and additions, into the layer before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute, sole_consumer
from qtool.graph.names import Names
from qtool.graph.weight_records import Scaled, record_steps

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})


class FoldAffine(ir.passes.InPlacePass):
    """Folds layer(x) * c + d, with constants per output channel, into the layer's weights and bias."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds as long as a constant follows a layer that does not share its weights."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            if node.op_type in _LAYERS and node.domain == "":
                while _fold_follower(model.graph, node, names):
                    modified = True
        return ir.passes.PassResult(model, modified=modified)


def _fold_follower(graph: ir.Graph, layer: ir.Node, names: Names) -> bool:
    output = layer.outputs[0]
    follower = sole_consumer(output)
    if follower is None or follower.domain != "" or follower.graph is not graph:
        return False
    weight, bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    weights, biases = constant_array(weight), constant_array(bias)
    if weight is None or weights is None or (bias is not None and biases is None):
        return False
    if weights.dtype != np.float32 or len(weight.uses()) != 1:
        return False
    if layer.op_type == "Gemm" and _float_attribute(layer, "beta", 1.0) != 1.0:
        return False
    # The bias of a Gemm may vary over rows.
    if biases is not None and biases.size != 1 and biases.size != biases.shape[-1]:
        return False
    channels = _output_channels(layer, weights)
    affine = _affine_of(follower, output, rank=2 if layer.op_type == "Gemm" else weights.ndim, channels=channels)
    if affine is None:
        return False
    old_bias = (
        np.zeros(channels) if biases is None else np.broadcast_to(biases.astype(np.float64).reshape(-1), channels)
    )
    if affine.factors is not None:
        factors = _along_output(layer, weights, affine.factors)
        scaled = add_constant(graph, f"{weight.name}_scaled", (weights * factors).astype(np.float32), names=names)
        record_steps(scaled, weight, Scaled(factors=factors, outputs=affine.factors))
        layer.replace_input_with(1, scaled)
        old_bias = old_bias * affine.factors
    if biases is not None or affine.offsets is not None:
        new_bias = old_bias if affine.offsets is None else old_bias + affine.offsets
        name = bias.name if bias is not None else f"{weight.name}_bias"
        constant = add_constant(graph, f"{name}_folded", new_bias.astype(np.float32), names=names)
        if len(layer.inputs) < 3:
            layer.resize_inputs(3)
        layer.replace_input_with(2, constant)
    final = follower.outputs[0]
    output.name, output.type, output.shape = final.name, final.type, final.shape
    final.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(follower, safe=True)
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affine:
    """A node that computes x * factors + offsets, both float64 of shape (channels,); None where it does not."""

    factors: npt.NDArray[np.float64] | None
    offsets: npt.NDArray[np.float64] | None


def _affine_of(node: ir.Node, source: ir.Value, *, rank: int, channels: int) -> _Affine | None:
    if node.op_type in ("Mul", "Add"):
        other = constant_array(node.inputs[1] if node.inputs[0] is source else node.inputs[0])
        spread = None if other is None else _one_per_channel(other, rank, channels)
        if spread is None:
            return None
        is_product = node.op_type == "Mul"
        return _Affine(factors=spread if is_product else None, offsets=None if is_product else spread)
    if node.op_type != "BatchNormalization" or node.inputs[0] is not source or len(node.outputs) != 1:
        return None
    parts = [constant_array(value) for value in node.inputs[1:5]]
    if any(part is None for part in parts) or integer_attribute(node, "training_mode", 0):
        return None
    gamma, beta, mean, variance = (np.asarray(part, np.float64) for part in parts)
    # y = gamma * (x - mean) / sqrt(variance + epsilon) + beta: operator BatchNormalization of the ONNX specification.
    factors = gamma / np.sqrt(variance + _float_attribute(node, "epsilon", 1e-5))
    return _Affine(factors=factors, offsets=beta - mean * factors)


def _float_attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def _output_channels(layer: ir.Node, weights: npt.NDArray[Any]) -> int:
    if layer.op_type == "Conv":
        return int(weights.shape[0])
    if layer.op_type == "ConvTranspose":
        return int(weights.shape[1]) * integer_attribute(layer, "group", 1)
    return int(weights.shape[0 if integer_attribute(layer, "transB", 0) else 1])


def _one_per_channel(constants: npt.NDArray[Any], rank: int, channels: int) -> npt.NDArray[np.float64] | None:
    """Returns (channels,) factors when ``constants`` broadcasts along the channel axis, 1, alone."""
    if constants.dtype != np.float32:
        return None
    if constants.ndim > rank:
        return None
    shape = (1,) * (rank - constants.ndim) + constants.shape
    if any(length != 1 for axis, length in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(constants.astype(np.float64).reshape(-1), (channels,))


def _along_output(
    layer: ir.Node, weights: npt.NDArray[Any], factors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Shapes one factor an output channel so that it multiplies that channel's weights."""
    if layer.op_type == "Conv":
        return factors.reshape(-1, *[1] * (weights.ndim - 1))
    if layer.op_type == "Gemm":
        return factors.reshape(-1, 1) if integer_attribute(layer, "transB", 0) else factors.reshape(1, -1)
    # ConvTranspose weights are (inputs, outputs / group, ...): the inputs of group g make the g-th run of outputs.
    group = integer_attribute(layer, "group", 1)
    by_group = factors.reshape(group, 1, -1)
    spread = np.broadcast_to(by_group, (group, weights.shape[0] // group, weights.shape[1]))
    return spread.reshape(weights.shape[0], weights.shape[1], *[1] * (weights.ndim - 2))
