"""Finds regions for cross-layer equalization: tensors whose channels can be scaled without changing the outputs.

A layer with stored weights produces a tensor; Relu, pooling or sums pass it on; other layers with stored weights read
it. Multiplying a channel by s > 0 at the start and dividing by s at the end changes nothing, because everything between
commutes with it: f(s x) = s f(x). Source: M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
Correction (ICCV 2019), section 4.1; here sums join the tensors they add into one region.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import clip_bounds, constant_array, integer_attribute, is_constant

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_EVERY_AXIS = ("Relu", "LeakyRelu", "Identity")
_MAPS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
_RESHAPES = ("Flatten", "Reshape", "Squeeze")
# Conv outputs maps, (samples, channels, ...); a matrix product has its channels last.
_MAP_AXIS, _LAST_AXIS = 1, -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRegion:
    """Tensors that share one factor per channel, and the layers around them.

    Attributes:
        axes: by tensor name, in graph order, the axis of its channels: 1 for maps, -1 elsewhere.
        parents: by tensor name, the tensors of the region whose values, errors included, it carries on.
        producers: names of the layers whose outputs enter.
        readers: by name of the layers that read, the tensor they read.
        offsets: names of the Add nodes that add a constant.
        bounds: by name of a Clip's output, its upper bound.
        channels: how many there are.
    """

    axes: Mapping[str, int]
    parents: Mapping[str, tuple[str, ...]]
    producers: tuple[str, ...]
    readers: Mapping[str, str]
    offsets: tuple[str, ...]
    bounds: Mapping[str, float]
    channels: int


class _CannotScaleError(Exception):
    """Something in a region does not commute with scaling."""


def scaling_regions(model: ir.Model) -> tuple[ScalingRegion, ...]:
    """Returns every region of a prepared model, in graph order; no tensor is in two of them."""
    order = {node: position for position, node in enumerate(model.graph)}
    seen: set[ir.Value] = set()
    found = []
    for node in model.graph:
        if is_layer(node) and node.outputs[0] not in seen:
            search = _Search(order, seen)
            try:
                search.spread(node)
                found.append(search.region())
            except _CannotScaleError:
                pass
            seen.update(search.axes)
    return tuple(found)


def is_layer(node: ir.Node) -> bool:
    """Returns whether a node multiplies its first input with float32 weights of its own."""
    if node.op_type not in _LAYERS or node.domain != "" or len(node.inputs) < 2:
        return False
    value, weight = node.inputs[1], constant_array(node.inputs[1])
    if value is None or weight is None or weight.dtype != np.float32 or len(value.uses()) != 1:
        return False
    if node.op_type in ("Gemm", "MatMul"):
        return weight.ndim == 2 and not integer_attribute(node, "transA", 0)
    return weight.ndim > 2


def layer_matrix(node: ir.Node, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the weights of a layer, seen as (groups, outputs of a group, inputs of a group, kernel)."""
    groups = integer_attribute(node, "group", 1)
    if node.op_type == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if node.op_type == "ConvTranspose":
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).transpose(0, 2, 1, 3)
    transposed = node.op_type == "Gemm" and integer_attribute(node, "transB", 0)
    return (weight if transposed else weight.T)[np.newaxis, :, :, np.newaxis]


def stored_weight(node: ir.Node) -> npt.NDArray[Any]:
    """Returns the weights of a layer as they are stored."""
    weight = constant_array(node.inputs[1])
    if weight is None:
        raise AssertionError(f"{node.name} was taken for a layer")
    return weight


def offset_shape(value: ir.Value, axis: int, channels: int) -> tuple[int, ...] | None:
    """Returns the shape of a constant with one number per channel of ``value``; None where its rank is not known."""
    if value.shape is None:
        return None
    shape = [1] * len(value.shape)
    shape[axis] = channels
    return tuple(shape)


class _Search:
    """Grows a region from a layer to everything that must be scaled with its output."""

    def __init__(self, order: Mapping[ir.Node, int], seen: Collection[ir.Value]) -> None:
        """Takes the position of each node, and the values that earlier searches came to."""
        self._order = order
        self._seen = seen
        self.axes: dict[ir.Value, int] = {}
        self._makers: dict[ir.Node, int] = {}
        self._readers: dict[ir.Node, int] = {}
        self._read: dict[ir.Node, ir.Value] = {}
        self._between: dict[ir.Node, tuple[ir.Value, ...]] = {}
        self._offsets: list[ir.Node] = []
        self._bounds: dict[str, float] = {}
        self._waiting: list[ir.Value] = []

    def spread(self, start: ir.Node) -> None:
        """Follows the values from ``start``'s output on, forwards and backwards.

        Raises:
            _CannotScaleError: they lead to something that does not commute with scaling.
        """
        self._reach(start.outputs[0], _MAP_AXIS if "Conv" in start.op_type else _LAST_AXIS)
        while self._waiting:
            value = self._waiting.pop()
            producer = value.producer()
            if producer is None or value.is_graph_output():
                raise _CannotScaleError
            if is_layer(producer):
                self._enter(producer, value)
            else:
                self._pass(producer)
            for use in value.uses():
                if use.node not in self._order:
                    raise _CannotScaleError  # a subgraph reads it
                if is_layer(use.node) and use.idx == 0:
                    self._leave(use.node, value)
                else:
                    self._pass(use.node)

    def region(self) -> ScalingRegion:
        """Returns what was found.

        Raises:
            _CannotScaleError: the layers do not have the same number of channels, or nothing reads the region.
        """
        counts = {*self._makers.values(), *self._readers.values()}
        if len(counts) != 1 or not self._readers:
            raise _CannotScaleError
        channels = counts.pop()
        for node in self._offsets:
            if not _fits(node, self.axes[node.outputs[0]], channels):
                raise _CannotScaleError
        values = sorted(self.axes, key=self._position)
        return ScalingRegion(
            axes={value.name or "": self.axes[value] for value in values},
            parents={value.name or "": tuple(parent.name or "" for parent in self._parents(value)) for value in values},
            producers=tuple(node.name or "" for node in sorted(self._makers, key=self._order.__getitem__)),
            readers={
                node.name or "": self._read[node].name or ""
                for node in sorted(self._readers, key=self._order.__getitem__)
            },
            offsets=tuple(node.name or "" for node in self._offsets),
            bounds=self._bounds,
            channels=channels,
        )

    def _position(self, value: ir.Value) -> int:
        producer = value.producer()
        return -1 if producer is None else self._order[producer]

    def _parents(self, value: ir.Value) -> tuple[ir.Value, ...]:
        producer = value.producer()
        if producer is None or producer not in self._between or producer.op_type.startswith("Global"):
            return ()  # averaging over many positions removes most of their errors
        return self._between[producer]

    def _reach(self, value: ir.Value, axis: int) -> None:
        if value in self._seen:
            raise _CannotScaleError  # values lead to each other both ways, so the search that came here had failed
        if value not in self.axes:
            self.axes[value] = axis
            self._waiting.append(value)
        elif self.axes[value] != axis:
            raise _CannotScaleError

    def _enter(self, layer: ir.Node, value: ir.Value) -> None:
        groups, outputs, _, _ = layer_matrix(layer, stored_weight(layer)).shape
        bias = layer.inputs[2] if len(layer.inputs) > 2 else None
        stored = constant_array(bias)
        if self.axes[value] != (_MAP_AXIS if "Conv" in layer.op_type else _LAST_AXIS):
            raise _CannotScaleError
        if bias is not None and (stored is None or stored.size not in (1, groups * outputs)):
            raise _CannotScaleError
        self._makers[layer] = groups * outputs

    def _leave(self, layer: ir.Node, value: ir.Value) -> None:
        groups, _, inputs, _ = layer_matrix(layer, stored_weight(layer)).shape
        if self.axes[value] != (_MAP_AXIS if "Conv" in layer.op_type else _LAST_AXIS):
            raise _CannotScaleError
        self._readers[layer] = groups * inputs
        self._read[layer] = value

    def _pass(self, node: ir.Node) -> None:
        """Continues through a node between layers."""
        if node in self._between:
            return
        sources = _scaled_inputs(node)
        for source in sources:
            if is_constant(source):
                raise _CannotScaleError
        self._between[node] = sources
        known = next(value for value in (*sources, node.outputs[0]) if value in self.axes)
        axis = self.axes[known]
        if node.op_type in _MAPS and axis != _MAP_AXIS:
            raise _CannotScaleError
        before, after = axis, axis
        if node.op_type in _RESHAPES:
            before, after = _MAP_AXIS, _LAST_AXIS
        for source in sources:
            self._reach(source, before)
        self._reach(node.outputs[0], after)
        if node.op_type == "Add" and len(sources) == 1:
            self._offsets.append(node)
        if node.op_type == "Clip" and np.isfinite(clip_bounds(node)[1]):
            self._bounds[node.outputs[0].name or ""] = clip_bounds(node)[1]


def _scaled_inputs(node: ir.Node) -> tuple[ir.Value, ...]:
    """Returns the inputs that are scaled when the output is.

    Raises:
        _CannotScaleError: the node does not commute with scaling channels.
    """
    inputs = node.inputs
    source = inputs[0] if inputs else None
    if node.domain != "" or source is None or len(node.outputs) != 1:
        raise _CannotScaleError
    if node.op_type in (*_EVERY_AXIS, *_MAPS):
        return (source,)
    if node.op_type == "PRelu" and is_constant(inputs[1]):
        return (source,)
    if node.op_type == "Clip" and all(value is None or is_constant(value) for value in inputs[1:]):
        low, high = clip_bounds(node)
        if high > 0 and low in (0.0, float("-inf")):
            return (source,)
    if node.op_type in _RESHAPES and _keeps_channels(node, source):
        return (source,)
    if node.op_type == "Add" and len(inputs) == 2 and inputs[1] is not None:
        computed = tuple(value for value in (source, inputs[1]) if not is_constant(value))
        if computed:
            return computed
    raise _CannotScaleError


def _keeps_channels(node: ir.Node, source: ir.Value) -> bool:
    """Returns whether maps of one position each, (samples, channels, 1, ...), become (samples, channels)."""
    output = node.outputs[0].shape
    if source.shape is None or output is None or len(source.shape) < 3 or len(output) != 2:
        return False
    channels = source.shape[1]
    return isinstance(channels, int) and output[1] == channels and all(dim == 1 for dim in list(source.shape)[2:])


def _fits(node: ir.Node, axis: int, channels: int) -> bool:
    """Returns whether the constant of an Add has one value, or one per channel."""
    array = next((constant_array(value) for value in node.inputs if is_constant(value)), None)
    shape = offset_shape(node.outputs[0], axis, channels)
    if array is None or shape is None or array.dtype != np.float32 or array.ndim > len(shape):
        return False
    return array.size == 1 or (1,) * (len(shape) - array.ndim) + array.shape == shape
