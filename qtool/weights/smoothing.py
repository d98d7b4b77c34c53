"""Moves the difficulty of quantizing from activations with outlier channels into the weights behind them.

(X / s) (s W) = X W for any factors s, one a channel of X: a few channels of a transformer reach a hundred times as far
as the others, and one scale for all leaves the others a step or two. Source of the identity: G. Xiao et al.,
SmoothQuant (ICML 2023), equation 3. Its factors (equation 4) scale every channel; here only outliers are scaled, since
the weights of an output, which share one scale, suffer from each factor.
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

# A channel is an outlier when it reaches so many times as far as the median channel.
_TOLERANCE = 3.0
# Channels that hardly ever leave zero would ask for factors without bound.
_LEAST_REACH = 1e-5
_LARGEST_FACTOR = 1e4


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
        # Integers that come from an integer kernel are not to be scaled on their way.
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


def channel_reach(runner: Runner, feeds: Iterable[Feed]) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the largest magnitude along the last axis' channels of every tensor that ``runner`` gives out."""
    reach: dict[str, npt.NDArray[np.float64]] = {}
    for feed in feeds:
        for name, value in runner.run(feed).items():
            largest = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0, initial=0.0).astype(np.float64)
            reach[name] = np.maximum(reach.get(name, 0.0), largest)
    return reach


def smoothing_factors(reach: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns s, float64, (channels,), at least 1: what activations are divided by and weights multiplied with.

    Channels that reach further than a few times the median channel are brought down to that; all others stay as they
    are, and with them the weights that need no help.

    Args:
        reach: largest magnitude of each channel of the activations.
    """
    usual = _TOLERANCE * max(float(np.median(reach)), _LEAST_REACH)
    return np.clip(reach / usual, 1.0, _LARGEST_FACTOR)


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


def _input_channels(node: ir.Node) -> int | None:
    """Returns how many input channels a layer's weights have; None where the weights are not its own."""
    value = node.inputs[1]
    array = constant_array(value)
    if value is None or array is None or array.ndim != 2 or array.dtype != np.float32 or len(value.uses()) != 1:
        return None
    transposed = node.op_type == "Gemm" and integer_attribute(node, "transB", 0)
    return int(array.shape[1 if transposed else 0])
