"""Latency of each layer in float and on integers: timed in the model, or predicted from a machine profile."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import onnx_ir as ir

from qtool.backends.machine_profile import LayerKind, MachineProfile
from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.calib.specs import Feed
from qtool.graph.constants import constant_array, integer_attribute, sole_consumer
from qtool.metrics.latency import interleaved_times, paired_ratio
from qtool.runtime.graphs import open_graph
from qtool.runtime.profile import KernelTime, kernel_times
from qtool.search.node_groups import NodeGroup

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_PAIR = ("_QuantizeLinear", "_DequantizeLinear")
_FEW_CHANNELS = 8
_SMALL_KERNEL = 9
_ROUNDS = 9
# A product on integers that does almost nothing takes the constant time of a second node: 0.9 to 1.1 µs for matrices of
# 16 x 16 in onnxruntime 1.32, where a float product takes 0.4 to 0.5. A Conv on integers does not.
_SLOW_TO_BEGIN = frozenset({LayerKind.MATRIX, LayerKind.VECTOR, LayerKind.ACTIVATIONS})


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Time of a layer and the operators of its group, in nanoseconds.

    Attributes:
        floats: in float.
        integers: on integers.
    """

    floats: float
    integers: float

    @property
    def saved(self) -> float:
        """How much longer it takes in float; below 0 where float is faster."""
        return self.floats - self.integers


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLayers:
    """The time of each layer in a run, by name, and that of a run of the float model, in seconds."""

    times: Mapping[str, LayerTime]
    float_s: float


def measured_times(
    model: ir.Model, quantized: ir.Model, groups: Sequence[NodeGroup], feed: Feed, *, threads: int = 0
) -> MeasuredLayers:
    """Times each layer in a run.

    The kernels of both models are timed one by one. Conversions between float and integers that another choice of
    layers needs are not included.

    Args:
        model: the prepared float model.
        quantized: the same with every layer on integers.
        groups: all layers.
        feed: what to run the models on.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    (floats, integers), float_s = _own_seconds((model, quantized), feed, threads)
    nodes = {node.name: node for node in model.graph}
    times = {}
    for group in groups:
        names = dict.fromkeys(name for node in group.nodes for name in _kernel_names(nodes[node]))
        # Conversions depend on the neighbours and are counted separately.
        own = [name for name in names if not name.endswith(_PAIR)]
        times[group.layer] = LayerTime(floats=1e9 * _total(floats, own), integers=1e9 * _total(integers, own))
    return MeasuredLayers(times=times, float_s=float_s)


def _own_seconds(models: Sequence[ir.Model], feed: Feed, threads: int) -> tuple[list[dict[str, float]], float]:
    """Returns for each model the time of each kernel in a run without the profiler, by name, and that of the first.

    How long such runs take is compared in turns: under changing load, kernels of one model may have been lucky.
    """
    profiles = kernel_times(models, feed, threads=threads)
    with ExitStack() as stack:
        sessions = [stack.enter_context(open_graph(model, threads=threads)) for model in models]
        first, *others = interleaved_times([partial(session.run, feed) for session in sessions], rounds=_ROUNDS)
    shortest = float(first.min())
    runs = [shortest, *(shortest / paired_ratio(first, times).median for times in others)]
    return [_within(run_s, kernels) for run_s, kernels in zip(runs, profiles, strict=True)], shortest


def _within(run_s: float, kernels: Mapping[str, KernelTime]) -> dict[str, float]:
    """Returns the seconds of ``kernels`` in a run of ``run_s`` seconds.

    What they take longer in all is the profiler's overhead, the same for each; when they take less, each was measured
    in a quieter moment.
    """
    total = sum(kernel.seconds for kernel in kernels.values())
    if total < run_s:
        return {name: kernel.seconds * run_s / max(total, sys.float_info.min) for name, kernel in kernels.items()}
    added = (total - run_s) / max(sum(kernel.kernels for kernel in kernels.values()), 1)
    return {name: max(kernel.seconds - kernel.kernels * added, 0.0) for name, kernel in kernels.items()}


def predicted_times(
    model: ir.Model, groups: Sequence[NodeGroup], shapes: Shapes, profile: MachineProfile
) -> dict[str, LayerTime]:
    """Predicts the same times from the multiply-adds of each layer and the elements between layers.

    Args:
        model: the prepared float model.
        groups: all layers.
        shapes: by the name of every tensor that they read or make.
        profile: what kernels cost on the machine.
    """
    nodes = {node.name: node for node in model.graph}
    times = {}
    for group in groups:
        found = [_predicted(nodes[name], shapes, profile) for name in group.nodes]
        floats, integers = (sum(getattr(time, form) for time in found) for form in ("floats", "integers"))
        times[group.layer] = LayerTime(floats=floats, integers=integers)
    return times


def unsigned_nanoseconds(
    model: ir.Model, groups: Sequence[NodeGroup], shapes: Shapes, profile: MachineProfile
) -> dict[str, float]:
    """Returns how much longer each layer takes with u8 weights than with s8 weights.

    Args:
        model: the prepared float model.
        groups: all layers.
        shapes: by the name of every tensor that they read or make.
        profile: what kernels cost on the machine.
    """
    nodes = {node.name: node for node in model.graph}
    longer = {}
    for group in groups:
        speed = profile.layers[layer_kind(nodes[group.layer], shapes)]
        longer[group.layer] = multiply_adds(nodes[group.layer], shapes) * (speed.unsigned - speed.signed)
    return longer


def possible_kinds(model: ir.Model, groups: Sequence[NodeGroup]) -> frozenset[LayerKind]:
    """Returns what ``layer_kind`` may say of the layers of ``groups``, whatever shapes they read."""
    nodes = {node.name: node for node in model.graph}
    found = frozenset(layer_kind(nodes[group.layer], {}) for group in groups)
    return found | {LayerKind.MATRIX} if LayerKind.VECTOR in found else found


def layer_kind(node: ir.Node, shapes: Shapes) -> LayerKind:
    """Returns which onnxruntime kernel runs a Conv, Gemm or MatMul."""
    weight = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type != "Conv":
        if weight is None:
            return LayerKind.ACTIVATIONS
        given = _shape(node.inputs[0], shapes)
        return LayerKind.VECTOR if math.prod(given[:-1]) == 1 else LayerKind.MATRIX
    if weight is None:
        return LayerKind.CONV
    kernel = weight.shape[2:]
    if (weight.shape[0], weight.shape[1]) == (integer_attribute(node, "group", 1), 1):
        return LayerKind.DEPTHWISE if math.prod(kernel) <= _SMALL_KERNEL else LayerKind.LARGE_DEPTHWISE
    if len(kernel) == 1:
        return LayerKind.CONV_1D
    if weight.shape[1] < _FEW_CHANNELS:
        return LayerKind.NARROW
    return LayerKind.POINTWISE if math.prod(kernel) == 1 else LayerKind.CONV


def multiply_adds(node: ir.Node, shapes: Shapes) -> int:
    """Returns the products that a Conv, Gemm or MatMul adds up."""
    made = math.prod(_shape(node.outputs[0], shapes))
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type == "Conv":
        stored = None if weight is None else constant_array(weight)
        return made * (1 if stored is None else math.prod(stored.shape[1:]))
    given = _shape(node.inputs[0], shapes)
    if not given:
        return made
    return made * (given[0] if node.op_type == "Gemm" and integer_attribute(node, "transA", 0) else given[-1])


def _predicted(node: ir.Node, shapes: Shapes, profile: MachineProfile) -> LayerTime:
    operator = OPERATORS.get(node.op_type)
    if operator is not None and operator.kind is Kind.LAYER:
        kind = layer_kind(node, shapes)
        speed, products = profile.layers[kind], multiply_adds(node, shapes)
        constant = profile.node if kind in _SLOW_TO_BEGIN else 0.0
        return LayerTime(floats=products * speed.floats, integers=products * speed.signed + constant)
    found = profile.operators.get(node.op_type)
    if found is None:
        return LayerTime(floats=0.0, integers=0.0)
    elements = max((math.prod(_shape(value, shapes)) for value in (*node.inputs, *node.outputs)), default=0)
    return LayerTime(floats=elements * found.floats, integers=elements * found.integers)


def _shape(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    return shapes.get((value.name or "") if value is not None else "", ())


def _kernel_names(node: ir.Node) -> list[str]:
    """Returns the names under which kernels of a node can appear: its own, its outputs', those of absorbed clamps."""
    names = [node.name or ""]
    value = node.outputs[0]
    while True:
        tensor = value.name or ""
        names += [tensor, *(tensor + suffix for suffix in _PAIR)]
        reader = sole_consumer(value)
        operator = None if reader is None else OPERATORS.get(reader.op_type)
        if reader is None or operator is None or operator.kind is not Kind.CLAMPING:
            return names
        names.append(reader.name or "")
        value = reader.outputs[0]


def _total(seconds: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(seconds.get(name, 0.0) for name in names)
