"""Moves the difficulty of quantizing from activations with outlier channels into the weights behind them.

(X / s) (s W) = X W for any factors s, one a channel of X. With s_j = max|X_j|^a / max|W_j|^(1 - a) the channels of X
by s reach about equally far, so that one scale serves them all, and the weights take up what that leaves. Source: G.
Xiao et al., SmoothQuant (ICML 2023), equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.collect import Runner
from calib.specs import Feed
from qtool.passes.constants import add_constant, constant_array, integer_attribute, is_constant
from qtool.passes.names import Names
from qtool.plan import Plan

# Channels that hardly ever leave zero would ask for factors without bound.
_LEAST_REACH = 1e-5
_LARGEST_FACTOR = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothable:
    """A tensor whose channels can be scaled against the weights that multiply them.

    Attributes:
        tensor: its name.
        layers: names of the MatMul and Gemm nodes that would read the scaled form.
        reach: largest magnitude of each channel's weights over all ``layers``, float64, (channels,).
    """

    tensor: str
    layers: tuple[str, ...]
    reach: npt.NDArray[np.float64]


def smoothable_tensors(model: ir.Model, plan: Plan) -> tuple[Smoothable, ...]:
    """Finds the float tensors that integer MatMul and Gemm layers with stored weights of their own read."""
    found: dict[str, list[tuple[str, npt.NDArray[np.float64]]]] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.name not in plan.integer_nodes or node.op_type not in ("MatMul", "Gemm") or source is None:
            continue
        weights = _rows(node)
        # Integers that come from an integer kernel are not to be scaled on their way.
        activation = plan.activations.get(source.name or "")
        if weights is None or activation is None or activation.source != source.name or activation.readers is None:
            continue
        found.setdefault(source.name or "", []).append((node.name or "", np.abs(weights).max(axis=1)))
    return tuple(
        Smoothable(
            tensor=tensor,
            layers=tuple(name for name, _ in readers),
            reach=np.max([reach for _, reach in readers], axis=0),
        )
        for tensor, readers in found.items()
        if len({len(reach) for _, reach in readers}) == 1
    )


def channel_reach(runner: Runner, feeds: Iterable[Feed]) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the largest magnitude along the last axis' channels of every tensor that ``runner`` gives out."""
    reach: dict[str, npt.NDArray[np.float64]] = {}
    for feed in feeds:
        for name, value in runner.run(feed).items():
            largest = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0, initial=0.0).astype(np.float64)
            reach[name] = np.maximum(reach.get(name, 0.0), largest)
    return reach


def smoothing_factors(
    activations: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], strength: float
) -> npt.NDArray[np.float64]:
    """Returns s, float64, (channels,), geometric mean 1: what activations are divided by and weights multiplied with.

    Args:
        activations: largest magnitude of each channel.
        weights: largest magnitude of each channel's weights.
        strength: the exponent a, from 0 (nothing moves but what balances weights) to 1 (activations become flat).
    """
    factors = np.maximum(activations, _LEAST_REACH) ** strength / np.maximum(weights, _LEAST_REACH) ** (1.0 - strength)
    factors /= np.exp(np.log(factors).mean())
    return np.clip(factors, 1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR)


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
            array = constant_array(weight)
            if weight is None or array is None:
                raise AssertionError("only layers with stored weights are smoothed")
            transposed = node.op_type == "Gemm" and integer_attribute(node, "transB", 0)
            spread = scale.reshape(1, -1) if transposed else scale.reshape(-1, 1)
            scaled = (array.astype(np.float64) * spread).astype(np.float32)
            node.replace_input_with(1, add_constant(graph, f"{weight.name}_smoothed", scaled, names=names))
            graph.initializers.pop(weight.name or "", None)
        if not _into_normalization(graph, value, readers, scale, names):
            inverse = add_constant(graph, f"{value.name}_smoothing", (1.0 / scale).astype(np.float32), names=names)
            product = ir.node("Mul", [value, inverse], name=f"{value.name}_smoothing_Mul")
            output = product.outputs[0]
            output.name, output.shape, output.type = names.free(f"{value.name}_smoothed"), value.shape, value.type
            maker = value.producer()
            if maker is None:
                graph.insert_before(graph[0], product)
            else:
                graph.insert_after(maker, product)
            for node in readers:
                node.replace_input_with(0, output)


def _into_normalization(
    graph: ir.Graph, value: ir.Value, readers: list[ir.Node], scale: npt.NDArray[np.float64], names: Names
) -> bool:
    """Divides the scale and bias of the LayerNormalization that makes ``value``, where nothing else reads it."""
    maker = value.producer()
    if maker is None or maker.op_type != "LayerNormalization" or value.is_graph_output():
        return False
    if {use.node for use in value.uses()} != set(readers) or len(maker.outputs) > 1:
        return False
    parts = maker.inputs[1:]
    if not all(is_constant(part) and part is not None and part.shape == (len(scale),) for part in parts):
        return False
    for index, part in enumerate(parts, start=1):
        array = constant_array(part)
        if part is not None and array is not None:
            divided = (array.astype(np.float64) / scale).astype(np.float32)
            maker.replace_input_with(index, add_constant(graph, f"{part.name}_smoothed", divided, names=names))
    return True


def _rows(node: ir.Node) -> npt.NDArray[np.float64] | None:
    """Returns the weights of a layer with its input channels as rows; None where they are not its own."""
    value = node.inputs[1]
    array = constant_array(value)
    if value is None or array is None or array.ndim != 2 or array.dtype != np.float32 or len(value.uses()) != 1:
        return None
    transposed = node.op_type == "Gemm" and integer_attribute(node, "transB", 0)
    return (array.T if transposed else array).astype(np.float64)
