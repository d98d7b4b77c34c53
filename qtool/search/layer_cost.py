"""Estimates what keeping a layer float costs in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from calib.specs import Feed
from qtool.passes.constants import sole_consumer
from qtool.placement.operators import OPERATORS, Kind
from qtool.runtime.profile import kernel_seconds
from qtool.search.node_groups import NodeGroup

_PAIR = ("_QuantizeLinear", "_DequantizeLinear")


def layer_costs(
    model: ir.Model, quantized: ir.Model, groups: Sequence[NodeGroup], feed: Feed, *, threads: int = 0
) -> dict[str, float]:
    """Returns by layer how many seconds longer a run takes in float; less than 0 where float is faster.

    The kernels of both models are timed one by one. Changes between float and integer that come with another choice are
    not in the estimate: what a choice really costs is measured at the end.

    Args:
        model: the prepared float model.
        quantized: the same with every layer on integers.
        groups: all layers.
        feed: what to run the models on.
        threads: threads inside an operator; 0 is one a core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    floats = kernel_seconds(model, feed, threads=threads)
    integers = kernel_seconds(quantized, feed, threads=threads)
    nodes = {node.name: node for node in model.graph}
    costs = {}
    for group in groups:
        names = [name for node in group.nodes for name in _kernel_names(nodes[node])]
        costs[group.layer] = _total(floats, names) - _total(integers, names)
    return costs


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
    return sum(seconds.get(name, 0.0) for name in dict.fromkeys(names))
