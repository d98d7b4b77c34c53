"""Folds constant products into the weights of the next layers, and constant sums where there is no zero padding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute
from qtool.graph.names import Names
from qtool.graph.weight_records import Scaled, Shifted, record_steps
from qtool.passes.quantization.constant_chains import constant_operand, is_normalized


class FoldIntoNext(ir.passes.InPlacePass):
    """Folds layer(x * c) into the layer's weights, and layer(x + c) into its bias.

    ``c`` is one number, or one per input channel. All readers of the result must be layers with unshared weights.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds every constant that can be."""
        modified = False
        names = Names(model.graph)
        for node in reversed(list(model.graph)):
            if _fold(model.graph, node, names):
                modified = True
        return ir.passes.PassResult(model, modified)


def _fold(graph: ir.Graph, node: ir.Node, names: Names) -> bool:
    found = constant_operand(node)
    output = node.outputs[0]
    if found is None or output.is_graph_output() or not output.uses():
        return False
    source, constant = found
    if is_normalized(source):
        return False
    layers = []
    for use in output.uses():
        channels = _input_channels(use.node) if use.idx == 0 and use.node.graph is graph else None
        spread = None if channels is None else _one_per_channel(use.node, constant, channels)
        # More axes of the constant would be axes of the layer's output, too.
        if (
            spread is None
            or constant.ndim > _least_rank(source, use.node)
            or (node.op_type == "Add" and not _takes_offset(use.node))
        ):
            return False
        layers.append((use.node, spread))
    for layer, spread in layers:
        if node.op_type == "Mul":
            _scale(graph, layer, spread, names)
        else:
            _shift(graph, layer, spread, names)
        layer.replace_input_with(0, source)
    graph.remove(node, safe=True)
    return True


def _input_channels(layer: ir.Node) -> int | None:
    """Returns how many input channels a layer's float32 weights have; None for other nodes, or shared weights."""
    if layer.domain != "" or layer.op_type not in ("Conv", "Gemm", "MatMul") or len(layer.inputs) < 2:
        return None
    value = layer.inputs[1]
    weights = constant_array(value)
    if value is None or weights is None or weights.dtype != np.float32 or len(value.uses()) != 1:
        return None
    if layer.op_type == "Conv":
        return int(weights.shape[1]) * integer_attribute(layer, "group", 1)
    if layer.op_type == "MatMul":
        return int(weights.shape[0]) if weights.ndim == 2 else None
    if integer_attribute(layer, "transA", 0):
        return None
    return int(weights.shape[1 if integer_attribute(layer, "transB", 0) else 0])


def _one_per_channel(
    layer: ir.Node, constant: npt.NDArray[np.float32], channels: int
) -> npt.NDArray[np.float64] | None:
    """Returns ``constant`` as float64 of shape (channels,) when it is one number for each input channel, or for all."""
    if constant.size == 1:
        return np.full(channels, float(constant.reshape(())))
    weights = constant_array(layer.inputs[1])
    axis = weights.ndim - 2 if layer.op_type == "Conv" and weights is not None else 0
    # Counted from the end, since constants may leave out leading axes.
    position = constant.ndim - 1 - axis
    if position < 0 or constant.shape[position] != channels or constant.size != channels:
        return None
    return constant.astype(np.float64).reshape(-1)


def _least_rank(source: ir.Value, layer: ir.Node) -> int:
    """Returns how many axes ``source`` has at least, which ``layer`` reads."""
    if source.shape is not None:
        return len(source.shape)
    weights = constant_array(layer.inputs[1])
    return weights.ndim if weights is not None and layer.op_type != "MatMul" else 1


def _takes_offset(layer: ir.Node) -> bool:
    """Returns whether an input offset becomes the same output offset everywhere, that is, without zero padding."""
    if layer.op_type == "MatMul":
        return False
    if layer.op_type == "Gemm":
        bias = constant_array(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else None
        plain = all(_is_one(layer, name) for name in ("alpha", "beta"))
        return plain and (len(layer.inputs) < 3 or layer.inputs[2] is None or (bias is not None and bias.ndim <= 1))
    pads, automatic = layer.attributes.get("pads"), layer.attributes.get("auto_pad")
    if automatic is not None and automatic.as_string() not in ("NOTSET", "VALID"):
        return False
    if pads is not None and any(pads.as_ints()):
        return False
    return len(layer.inputs) < 3 or layer.inputs[2] is None or constant_array(layer.inputs[2]) is not None


def _is_one(layer: ir.Node, name: str) -> bool:
    attribute = layer.attributes.get(name)
    return attribute is None or attribute.as_float() == 1.0


def _along_input(layer: ir.Node, spread: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Reshapes one number per input channel so that it multiplies that channel's weights."""
    weights = constant_array(layer.inputs[1])
    if weights is None:
        raise AssertionError("the weights were looked at before")
    if layer.op_type != "Conv":
        return spread.reshape(1, -1) if integer_attribute(layer, "transB", 0) else spread.reshape(-1, 1)
    groups = integer_attribute(layer, "group", 1)
    # Outputs of group g read the g-th run of inputs; one row for all outputs keeps the record of the weight small.
    by_group = spread.reshape(groups, -1)
    if groups > 1:
        by_group = np.repeat(by_group, weights.shape[0] // groups, axis=0)
    return by_group.reshape(*by_group.shape, *[1] * (weights.ndim - 2))


def _scale(graph: ir.Graph, layer: ir.Node, factors: npt.NDArray[np.float64], names: Names) -> None:
    value = layer.inputs[1]
    weights = constant_array(value)
    if value is None or weights is None:
        raise AssertionError("the weights were looked at before")
    spread = _along_input(layer, factors)
    scaled = add_constant(graph, f"{value.name}_scaled", (weights * spread).astype(np.float32), names=names)
    record_steps(scaled, value, Scaled(factors=spread))
    layer.replace_input_with(1, scaled)


def _shift(graph: ir.Graph, layer: ir.Node, offsets: npt.NDArray[np.float64], names: Names) -> None:
    value = layer.inputs[1]
    weights = constant_array(value)
    if value is None or weights is None:
        raise AssertionError("the weights were looked at before")
    spread = _along_input(layer, offsets)
    outputs_first = layer.op_type == "Conv" or bool(integer_attribute(layer, "transB", 0))
    axes = tuple(range(1, weights.ndim)) if outputs_first else (0,)
    change = (weights.astype(np.float64) * spread).sum(axis=axes)
    record_steps(value, value, Shifted(offsets=spread, axes=axes))
    old = constant_array(layer.inputs[2]) if len(layer.inputs) > 2 else None
    bias = change if old is None else old.reshape(-1).astype(np.float64) + change
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    shifted = add_constant(graph, f"{layer.name}_shifted_bias", bias.astype(np.float32), names=names)
    layer.replace_input_with(2, shifted)
