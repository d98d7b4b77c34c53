"""AWQ: scales up the weights of strong input channels, whose rounding errors then weigh less.

With factors s, one for each input channel, (x / s) (s W) = x W; in the rounded W' the error of a channel shrinks by its
factor as long as the largest weight of its block stays the same. Source: J. Lin et al., AWQ (MLSys 2024), section 3.2:
s = |x|^a with one exponent per layer, searched on a grid by the error of the products. Here |x| is the root mean square
of a channel, and the error that of all layers that read the tensor. Factors cost nothing as the model runs: they go
into what makes the tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, is_constant, is_transposed, sole_consumer
from qtool.graph.names import Names
from qtool.graph.weight_records import Scaled, record_steps
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import Matrix, round_blocks
from qtool.weights.channel_scaling import Floats, scale_channels
from qtool.weights.scaling_regions import ScalingRegion, is_layer, scaling_regions, stored_weight

_EXPONENTS = np.linspace(0.0, 1.0, 21)[1:]
# Outputs of a layer that the error is looked at in, evenly spread: factors belong to inputs, which all of them have.
_OUTPUTS = 128
# Channels that are never used get no less of the factors' range than this.
_LEAST = 1e-4
# Scaling for less is not worth what it may lose in the rest of the data.
_WORTHWHILE = 0.98
# By operator, the inputs that its output is proportional to, channel by channel.
_GAINS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalableInput:
    """A tensor that only layers read, all of whose channels can be scaled.

    Attributes:
        tensor: its name.
        layers: names of the MatMul and Gemm nodes that read it.
        channels: how many channels it has, along its last axis.
        region: the layers around it, whose weights change.
        gains: constants that change with it: node name and place among the node's inputs.
    """

    tensor: str
    layers: tuple[str, ...]
    channels: int
    region: ScalingRegion
    gains: tuple[tuple[str, int], ...] = ()


def scalable_inputs(model: ir.Model, layers: Collection[str]) -> tuple[ScalableInput, ...]:
    """Returns the inputs of ``layers`` that can be scaled, in graph order.

    A normalization takes factors in its gain and bias, a product of channels (SwiGLU's) in the weights of one of its
    factors, and whatever passes scales on in the weights in front of it.

    Args:
        model: the prepared float model.
        layers: names of the layers whose weights become integers.
    """
    regions = {}
    for region in scaling_regions(model):
        tensors = set(region.readers.values())
        if len(tensors) == 1:
            regions[tensors.pop()] = region
    found: dict[str, ScalableInput] = {}
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        if node.name not in layers or value is None or (value.name or "") in found or not is_layer(node):
            continue
        place = _place(value, layers, regions)
        if place is not None:
            found[place.tensor] = place
    return tuple(found.values())


def fold_scales(model: ir.Model, places: Collection[ScalableInput], scales: Mapping[str, Floats]) -> None:
    """Divides each tensor of ``scales`` by its factors, (channels,), and multiplies its readers' weights, in place.

    The model's outputs do not change. Weights of layers keep their names.
    """
    nodes = {node.name: node for node in model.graph}
    names = Names(model.graph)
    chosen = [place for place in places if place.tensor in scales]
    for place in chosen:
        factors = 1.0 / scales[place.tensor]
        for name, index in place.gains:
            node = nodes[name]
            value = node.inputs[index]
            array = constant_array(value)
            if value is None or array is None:
                raise AssertionError(f"{name} was taken for one with constant gains")
            divided = (array.astype(np.float64) * factors).astype(np.float32)
            made = add_constant(model.graph, f"{value.name}_scaled", divided, names=names)
            record_steps(made, value, Scaled(factors=factors, outputs=factors))
            node.replace_input_with(index, made)
            if not value.uses():
                model.graph.initializers.pop(value.name or "", None)
    scale_channels(model, [(place.region, 1.0 / scales[place.tensor]) for place in chosen], when_read=True)


def _place(value: ir.Value, layers: Collection[str], regions: Mapping[str, ScalingRegion]) -> ScalableInput | None:
    producer = value.producer()
    readers = [use.node for use in value.uses()]
    if producer is None or value.is_graph_output():
        return None
    if not all(use.idx == 0 and use.node.name in layers and is_layer(use.node) for use in value.uses()):
        return None
    tensor = value.name or ""
    widths = {_inputs(node) for node in readers}
    if len(widths) != 1:
        return None
    channels = widths.pop()
    names = tuple(dict.fromkeys(node.name or "" for node in readers))
    gains = _gains(producer, value, channels)
    region = regions.get(tensor)
    if gains is not None:
        region = _around(tensor, names, channels)
    elif region is None and (maker := _factor(producer, channels)) is not None:
        region = _around(tensor, names, channels, maker.name or "")
    if region is None or not set(region.readers) <= set(layers):
        return None
    return ScalableInput(tensor=tensor, layers=names, channels=channels, region=region, gains=gains or ())


def _around(tensor: str, readers: tuple[str, ...], channels: int, producer: str | None = None) -> ScalingRegion:
    return ScalingRegion(
        axes={tensor: -1},
        parents={},
        producers=() if producer is None else (producer,),
        readers=dict.fromkeys(readers, tensor),
        offsets=(),
        bounds={},
        channels=channels,
    )


def _inputs(node: ir.Node) -> int:
    return int(stored_weight(node).shape[1 if is_transposed(node) else 0])


def _gains(node: ir.Node, value: ir.Value, channels: int) -> tuple[tuple[str, int], ...] | None:
    """Returns the constants that scale the output of ``node``; None where something else does."""
    if node.op_type in _GAINS and value is node.outputs[0] and node.domain in ("", "com.microsoft"):
        given = [place for place in _GAINS[node.op_type] if place < len(node.inputs) and node.inputs[place] is not None]
        if all(_is_vector(node.inputs[place], channels) for place in given):
            return tuple((node.name or "", place) for place in given)
        return None
    if node.domain != "" or node.op_type not in ("Mul", "Add"):
        return None
    place = next((place for place, given in enumerate(node.inputs) if _is_vector(given, channels)), None)
    if place is None:
        return None
    own = ((node.name or "", place),)
    if node.op_type == "Mul":
        return own
    # A bias needs a gain in front of it.
    before = node.inputs[1 - place]
    maker = None if before is None else before.producer()
    if before is None or maker is None or maker.op_type != "Mul" or sole_consumer(before) is not node:
        return None
    gain = _gains(maker, before, channels)
    return None if gain is None else own + gain


def _factor(node: ir.Node, channels: int) -> ir.Node | None:
    """Returns the layer whose outputs are one factor of a product of channels, without a use elsewhere."""
    if node.op_type != "Mul" or node.domain != "":
        return None
    for value in reversed(node.inputs):
        maker = None if value is None else value.producer()
        if value is None or maker is None or sole_consumer(value) is not node or not is_layer(maker):
            continue
        bias = maker.inputs[2] if len(maker.inputs) > 2 else None
        if maker.op_type in ("MatMul", "Gemm") and (bias is None or _is_vector(bias, channels)):
            return maker if _outputs(maker) == channels else None
    return None


def _outputs(node: ir.Node) -> int:
    return int(stored_weight(node).size) // _inputs(node)


def _is_vector(value: ir.Value | None, channels: int) -> bool:
    return (
        value is not None
        and is_constant(value)
        and value.dtype == ir.DataType.FLOAT
        and value.shape is not None
        and tuple(value.shape) == (channels,)
    )


def awq_scales(weights: Sequence[tuple[Matrix, BlockGrid]], hessian: Floats) -> Floats | None:
    """Returns the factors s of a tensor's channels, float64, (inputs,); None where they gain too little.

    Args:
        weights: of every layer that reads the tensor, (outputs, inputs), with the integers that they become.
        hessian: Σ x xᵀ of the tensor, (inputs, inputs).
    """
    strength = np.sqrt(np.diagonal(hessian))
    largest = float(strength.max(initial=0.0))
    if largest == 0.0:
        return None
    strength = np.maximum(strength, _LEAST * largest)
    sampled = [(np.ascontiguousarray(matrix[:: max(len(matrix) // _OUTPUTS, 1)]), grid) for matrix, grid in weights]
    moments = hessian.astype(np.float32)
    plain = least = _error(sampled, moments, np.ones_like(strength))
    found = None
    for exponent in _EXPONENTS:
        scales = strength**exponent
        scales /= np.sqrt(scales.max() * scales.min())
        error = _error(sampled, moments, scales)
        if error < least:
            least, found = error, scales
    return found if least < _WORTHWHILE * plain else None


def scaled_hessian(hessian: Floats, scales: Floats) -> Floats:
    """Returns Σ x xᵀ of the tensor divided by its factors."""
    divided: Floats = hessian / np.outer(scales, scales)
    return divided


def _error(weights: Sequence[tuple[Matrix, BlockGrid]], moments: Matrix, scales: Floats) -> float:
    """Returns the sum of |(W' - W) x|² over the layers, W' rounded to nearest after scaling."""
    factors = scales.astype(np.float32)
    total = 0.0
    for matrix, grid in weights:
        rounded = round_blocks("", matrix * factors, grid).dequantized() / factors
        error = rounded - matrix
        total += float(((error @ moments) * error).sum())
    return total
