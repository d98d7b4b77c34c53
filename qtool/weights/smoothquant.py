"""SmoothQuant: moves outlier channels of activations into the weights that multiply them.

(X / s) (s W) = X W for any factors s, one per channel of X: a few channels of a transformer have a hundred times the
range of the others, and one scale for all leaves the others a step or two. Source of the identity: G. Xiao et al.,
SmoothQuant (ICML 2023), equation 3. Its factors (equation 4) use one exponent for a whole model; here the factors of
each tensor are chosen from several families, by the noise that rounding both sides causes in the layers that read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.calib.collect import Runner
from qtool.calib.missing_values import places_without_nan
from qtool.calib.specs import Feed
from qtool.graph.constants import add_constant, constant_array, is_transposed
from qtool.graph.names import Names
from qtool.graph.weight_records import Scaled, record_steps
from qtool.plan import Plan
from qtool.weights.smoothing_folds import folded

# Factors that bring channels down to so many times the median channel's range, and leave the others unchanged.
_TOLERANCES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
# Factors that are this power of each channel's range; 1 makes all ranges equal.
_POWERS = (0.25, 0.5, 0.65, 0.8, 0.9, 1.0)
# The least range, relative to the median channel's, assumed of a channel that is almost always zero.
_LEAST_REACH = 0.1
_LARGEST_FACTOR = 1e4
# GPTQ leaves about this fraction of the noise of rounding to nearest.
_WEIGHTS_PART = 0.25
# A Mul that cannot be folded into a normalization costs time: it has to reduce the noise to less than this fraction.
_WORTHWHILE = 0.8
# Weights that are held in float64 at a time.
_MOST_WIDENED_VALUES = 1 << 22
_ACTIVATION_STEPS, _WEIGHT_STEPS = 255.0, 127.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpread:
    """Statistics of a tensor's channels along its last axis; each float64, (channels,).

    Attributes:
        low: the smallest values.
        high: the largest values.
        mean_square: the means of the squares.
    """

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    mean_square: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothable:
    """A tensor whose channels can be scaled against the weights that multiply them.

    Attributes:
        tensor: its name.
        layers: names of the MatMul and Gemm nodes that would read the scaled form.
        channels: how many channels it has, along its last axis.
    """

    tensor: str
    layers: tuple[str, ...]
    channels: int


def smoothable_tensors(model: ir.Model, plan: Plan) -> tuple[Smoothable, ...]:
    """Finds the float tensors that integer MatMul and Gemm layers with stored weights of their own read."""
    found: dict[str, list[tuple[str, int]]] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.name not in plan.integer_nodes or node.op_type not in ("MatMul", "Gemm") or source is None:
            continue
        channels = _input_channels(node)
        # Integers passed from one integer kernel to the next cannot be scaled in between.
        activation = plan.activations.get(source.name or "")
        if channels is None or activation is None or activation.source != source.name or activation.readers is None:
            continue
        found.setdefault(source.name or "", []).append((node.name or "", channels))
    return tuple(
        Smoothable(
            tensor=tensor,
            layers=tuple(name for name, _ in readers),
            channels=readers[0][1],
        )
        for tensor, readers in found.items()
        if len({channels for _, channels in readers}) == 1
    )


def smoothable_inputs(model: ir.Model, layers: Collection[str]) -> tuple[Smoothable, ...]:
    """Finds the tensors that MatMul and Gemm nodes of ``layers`` read, each with a stored weight of its own.

    All readers of a tensor among ``layers`` are scaled together; a tensor that one of them cannot follow is left out.
    """
    found: dict[str, list[tuple[str, int | None]]] = {}
    for node in model.graph:
        if node.name in layers and node.op_type in ("MatMul", "Gemm") and node.inputs[0] is not None:
            found.setdefault(node.inputs[0].name or "", []).append((node.name or "", _input_channels(node)))
    smoothable = []
    for tensor, readers in found.items():
        lengths = {channels for _, channels in readers}
        if len(lengths) == 1 and (length := lengths.pop()) is not None:
            names = tuple(name for name, _ in readers)
            smoothable.append(Smoothable(tensor=tensor, layers=names, channels=length))
    return tuple(smoothable)


def channel_spreads(runner: Runner, feeds: Iterable[Feed]) -> dict[str, ChannelSpread]:
    """Returns channel statistics of every tensor that ``runner`` returns; tensors without values are left out."""
    found: dict[str, ChannelSpread] = {}
    rows: dict[str, int] = {}
    for feed in feeds:
        for name, value in runner.run(feed).items():
            flat = places_without_nan(value, -1).T
            if not flat.size:
                continue
            seen, count = rows.get(name, 0), len(flat)
            square = np.square(flat, dtype=np.float64).mean(axis=0)
            low, high = flat.min(axis=0).astype(np.float64), flat.max(axis=0).astype(np.float64)
            known = found.get(name)
            if known is not None:
                low, high = np.minimum(low, known.low), np.maximum(high, known.high)
                square = (known.mean_square * seen + square * count) / (seen + count)
            found[name] = ChannelSpread(low=low, high=high, mean_square=square)
            rows[name] = seen + count
    return found


def smoothing_factors(
    spread: ChannelSpread, weights: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float64] | None:
    """Returns s, float64, (channels,), by which activations are divided and weights multiplied.

    None where the gain is too small.

    Args:
        spread: of the activations.
        weights: of the layers that read them, each (channels, outputs).
    """
    reach = np.maximum(np.abs(spread.low), np.abs(spread.high))
    median = float(np.median(reach[reach > 0])) if reach.any() else 0.0
    if median == 0.0:
        return None
    relative = np.maximum(reach / median, _LEAST_REACH)
    candidates = [np.clip(relative / tolerance, 1.0, _LARGEST_FACTOR) for tolerance in _TOLERANCES]
    candidates += [np.minimum(relative**power, _LARGEST_FACTOR) for power in _POWERS]
    noises = [layer_noise(spread, weights, factors) for factors in candidates]
    best = min(range(len(candidates)), key=lambda number: noises[number])
    if noises[best] >= _WORTHWHILE * layer_noise(spread, weights, np.ones_like(reach)):
        return None
    return candidates[best]


def layer_noise(
    spread: ChannelSpread, weights: Sequence[npt.NDArray[np.float32]], factors: npt.NDArray[np.float64]
) -> float:
    """Returns the noise power of 8-bit activations and weights per output position, summed over all layers.

    Rounding to a grid of step Δ adds noise of Δ²/12. The noise of channel c of the activations reaches the outputs
    through s_c W_c, that of the weights of an output through the mean square of each channel's x_c / s_c.

    Args:
        spread: of the activations.
        weights: of the layers, each (channels, outputs).
        factors: s, (channels,).
    """
    low, high = min(float((spread.low / factors).min()), 0.0), max(float((spread.high / factors).max()), 0.0)
    activation_noise = ((high - low) / _ACTIVATION_STEPS) ** 2 / 12.0
    power = float((spread.mean_square / factors**2).sum())
    noise = 0.0
    for weight in weights:
        columns = max(_MOST_WIDENED_VALUES // max(len(factors), 1), 1)
        for first in range(0, weight.shape[1], columns):
            scaled = np.abs(weight[:, first : first + columns].astype(np.float64)) * factors[:, None]
            weight_noise = (scaled.max(axis=0, initial=0.0) / _WEIGHT_STEPS) ** 2 / 12.0
            noise += activation_noise * float((scaled**2).sum()) + _WEIGHTS_PART * power * float(weight_noise.sum())
    return noise


def own_weights(model: ir.Model, tensor: Smoothable) -> list[npt.NDArray[np.float32]]:
    """Returns the weights of the layers that read ``tensor``, each (channels, outputs)."""
    nodes = {node.name: node for node in model.graph}
    return [_input_major(nodes[name], _stored(nodes[name])) for name in tensor.layers]


def smooth(model: ir.Model, tensors: Iterable[Smoothable], factors: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Rewrites ``model`` in place: layers read their tensor divided by the factors, with weights multiplied by them."""
    graph = model.graph
    names = Names(graph)
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    nodes = {node.name: node for node in graph}
    for tensor in tensors:
        value, scale = values[tensor.tensor], factors[tensor.tensor]
        readers = [nodes[name] for name in tensor.layers]
        for node in readers:
            weight = node.inputs[1]
            weight_name = (weight.name if weight is not None else None) or ""
            spread = scale.reshape(1, -1) if is_transposed(node) else scale.reshape(-1, 1)
            scaled = _scaled(_stored(node), spread)
            made = add_constant(graph, f"{weight_name}_smoothed", scaled, names=names)
            if weight is not None:
                record_steps(made, weight, Scaled(factors=spread))
            node.replace_input_with(1, made)
            graph.initializers.pop(weight_name, None)
        if not folded(graph, value, readers, scale, names):
            inverse = add_constant(graph, f"{value.name}_smoothing", (1.0 / scale).astype(np.float32), names=names)
            product = ir.node("Mul", [value, inverse], name=names.for_node(f"{value.name}_smoothing_Mul"))
            output = product.outputs[0]
            output.name, output.shape, output.type = names.free(f"{value.name}_smoothed"), value.shape, value.type
            producer = value.producer()
            if producer is None:
                graph.insert_before(graph[0], product)
            else:
                graph.insert_after(producer, product)
            for node in readers:
                node.replace_input_with(0, output)


def _scaled(weight: npt.NDArray[np.float32], factors: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Returns the product in float32, computed in float64 some rows at a time."""
    product = np.empty(weight.shape, np.float32)
    rows = max(_MOST_WIDENED_VALUES // max(weight.shape[1], 1), 1)
    for first in range(0, len(weight), rows):
        part = slice(first, first + rows)
        product[part] = weight[part].astype(np.float64) * (factors if len(factors) == 1 else factors[part])
    return product


def _input_channels(node: ir.Node) -> int | None:
    """Returns how many input channels a layer's weights have; None where it shares its weights."""
    value = node.inputs[1]
    array = constant_array(value)
    if value is None or array is None or array.ndim != 2 or array.dtype != np.float32 or len(value.uses()) != 1:
        return None
    return int(array.shape[1 if is_transposed(node) else 0])


def _stored(node: ir.Node) -> npt.NDArray[np.float32]:
    array = constant_array(node.inputs[1])
    if array is None:
        raise AssertionError("only layers with stored weights are smoothed")
    return array


def _input_major(node: ir.Node, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return weight.T if is_transposed(node) else weight
