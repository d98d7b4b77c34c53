"""QDQ placement on the inputs of layers, for compilers that propagate integers by themselves.

TensorRT and OpenVINO fuse the operators after a layer (bias, activation, residual Add) into it and move Q and DQ
through the graph by themselves; Q/DQ after a layer's own output would prevent that. Of an Add that closes a residual
block, the input that is not the output of its own layer is quantized, so that the layer, the Add and its activation
become one kernel. Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html,
on the placement of Q/DQ.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qtool.backends.qdq_placement.layers import agreed_weight, reason_to_skip_layer, weight_granularity
from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.calib.granularity import Granularity, PerTensor
from qtool.calib.grid import Grid
from qtool.graph.constants import is_constant, sole_consumer
from qtool.plan import ActivationPlan, BiasPlan, Plan, Skipped
from qtool.schemes import Scheme
from qtool.selection import NodeSelection


def place(
    graph: ir.Graph, scheme: Scheme, selection: NodeSelection, unfit: Mapping[str, str], kept_float: Mapping[str, str]
) -> Plan:
    """Returns the plan for ``graph``, whose nodes all have names.

    ``unfit`` gives the reasons of tensors that must stay float, ``kept_float`` those of nodes.
    """
    layers: dict[ir.Node, None] = {}
    skipped = []
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if not _is_layer(node):
            continue
        reason = "it is inside a branch or a loop" if node.graph is not graph else None
        reason = reason or kept_float.get(_name(node)) or selection.reason_to_skip(node) or reason_to_skip_layer(node)
        reason = reason or _unfit_input(node, unfit)
        if reason is None:
            layers[node] = None
        else:
            skipped.append(Skipped(node=_name(node), operator=node.op_type, reason=reason))
    readers: dict[str, dict[str, None]] = {}
    for node in graph:
        for value in _quantized_inputs(node, layers, selection, unfit):
            if _name(node) not in kept_float:
                readers.setdefault(value.name or "", {})[_name(node)] = None
    return Plan(
        activations={
            tensor: ActivationPlan(tensor=tensor, grid=scheme.activations, source=tensor, readers=frozenset(names))
            for tensor, names in readers.items()
        },
        weights={
            tensor: agreed_weight(tensor, wishes, scheme) for tensor, wishes in _weight_wishes(layers, scheme).items()
        },
        biases=_biases(layers) if scheme.integer_biases else {},
        integer_nodes={_name(node): node.op_type for node in layers},
        skipped=tuple(skipped),
        channel_axes=_channel_axes(layers),
    )


def _is_layer(node: ir.Node) -> bool:
    operator = OPERATORS.get(node.op_type) if node.domain == "" else None
    return operator is not None and operator.kind is Kind.LAYER


def _quantized_inputs(
    node: ir.Node, layers: Mapping[ir.Node, None], selection: NodeSelection, unfit: Mapping[str, str]
) -> list[ir.Value]:
    """Returns the inputs of a node that get Q/DQ."""
    if node in layers:
        return [value for value in node.inputs[:2] if value is not None and not is_constant(value)]
    if node.op_type != "Add" or node.domain != "" or selection.reason_to_skip(node) is not None:
        return []
    branches = [value for value in node.inputs if value is not None and not is_constant(value)]
    computed = [value for value in branches if value.producer() in layers and sole_consumer(value) is node]
    if len(branches) != 2 or not computed or branches[0] is branches[1]:
        return []
    residual = branches[1] if branches[0] is computed[0] else branches[0]
    return [] if (residual.name or "") in unfit else [residual]


def _unfit_input(node: ir.Node, unfit: Mapping[str, str]) -> str | None:
    for value in node.inputs[:2]:
        if value is not None and (value.name or "") in unfit:
            return f"'{value.name}' {unfit[value.name or '']}"
    return None


def _weight_wishes(layers: Mapping[ir.Node, None], scheme: Scheme) -> dict[str, list[tuple[str, Grid, Granularity]]]:
    wishes: dict[str, list[tuple[str, Grid, Granularity]]] = {}
    for node in layers:
        for index, value in enumerate(node.inputs[:2]):
            if value is None or not is_constant(value):
                continue
            grid, granularity = scheme.weights, weight_granularity(node, per_channel=scheme.per_channel)
            if index == 0:
                grid, granularity = scheme.activations, PerTensor()
            wishes.setdefault(value.name or "", []).append((_name(node), grid, granularity))
    return wishes


def _biases(layers: Mapping[ir.Node, None]) -> dict[str, BiasPlan]:
    return {
        _name(node): BiasPlan(
            tensor=node.inputs[2].name or "",
            node=_name(node),
            activation=node.inputs[0].name or "",
            weight=node.inputs[1].name or "",
        )
        for node in layers
        if len(node.inputs) > 2 and node.inputs[0] and node.inputs[1] and node.inputs[2]
    }


def _channel_axes(layers: Mapping[ir.Node, None]) -> dict[str, int]:
    """Returns, for every tensor that meets the weights of a layer, the axis that they multiply."""
    axes: dict[str, int] = {}
    for node in layers:
        source = node.inputs[0]
        if source is not None and is_constant(node.inputs[1]) and not is_constant(source):
            axes.setdefault(source.name or "", 1 if node.op_type == "Conv" else -1)
    return axes


def _name(node: ir.Node) -> str:
    return node.name or ""
