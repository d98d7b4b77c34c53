"""QDQ placement for OpenVINO's low-precision transformations.

Q and DQ are on the inputs of layers: what follows a layer (bias, activation function, residual Add) is fused into it,
and the Q after that, too, so that it writes integers. Beyond that

- operators that only move values run on integers where Q and DQ are before them; a second pair behind them would not
  be merged with the first where its zero point is not 0;
- pools run on integers where Q and DQ are before them as well;
- of a ConvTranspose activations must have the zero point 0, so that they are u8 only where nothing is below 0;
- a MatMul of two activations takes symmetric s8 on both sides; one behind a Softmax stays float. OpenVINO fuses an
  attention into one kernel, which has the first product on integers then.

All of it was read from executed graphs, and is covered by tests. Conditions of the transformations:
https://docs.openvino.ai/2025/documentation/openvino-extensibility/openvino-plugin-library/advanced-guides/low-precision-transformations.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from qtool.backends.openvino.pair_order import with_orders
from qtool.backends.qdq_placement import layer_inputs
from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.calib.granularity import PerChannel, PerTensor
from qtool.graph.constants import clip_bounds, constant_array, integer_attribute, is_constant, sole_consumer
from qtool.plan import ActivationPlan, Plan, Skipped, WeightPlan
from qtool.schemes import S8_SYMMETRIC, Scheme
from qtool.selection import NodeSelection

_POOLS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
_BEHIND_SOFTMAX = "OpenVINO fuses a MatMul behind a Softmax with it, in float"
_SHARED = "OpenVINO multiplies two activations in symmetric s8, and one of them is read by other nodes as well"
_NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "HardSigmoid")


def place(
    graph: ir.Graph, scheme: Scheme, selection: NodeSelection, unfit: Mapping[str, str], kept_float: Mapping[str, str]
) -> Plan:
    """Returns the plan for ``graph``, whose nodes all have names.

    ``unfit`` gives the reasons of tensors that must stay float, ``kept_float`` those of nodes.
    """
    products = [node for node in graph if _multiplies_activations(node)]
    reasons = {node.name or "": reason for node in products if (reason := _reason_of_product(node)) is not None}
    plan = layer_inputs.place(graph, scheme, selection, unfit, {**reasons, **kept_float})
    signed = {value.name or "" for node in products if (node.name or "") in plan.integer_nodes for value in _read(node)}
    activations = {
        name: replace(activation, grid=S8_SYMMETRIC) if name in signed else activation
        for name, activation in plan.activations.items()
    }
    plan = replace(plan, activations=activations)
    plan = _with_transposed_convolutions(graph, plan, scheme, selection, unfit, kept_float)
    weights = with_orders(graph, plan.weights)
    return replace(plan, activations=_with_earlier(graph, plan.activations, unfit, kept_float), weights=weights)


def _read(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _multiplies_activations(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "MatMul" and not any(map(is_constant, node.inputs))


def _reason_of_product(node: ir.Node) -> str | None:
    """Returns why a MatMul of two activations stays float, or None where it need not."""
    read = _read(node)
    if read and _is_behind_softmax(read[0]):
        return _BEHIND_SOFTMAX
    return _SHARED if any(sole_consumer(value) is not node for value in read) else None


def _is_behind_softmax(value: ir.Value) -> bool:
    """Goes back through what replaces single values, such as those of padding."""
    producer = value.producer()
    while producer is not None and producer.domain == "" and producer.op_type in ("Where", "Identity", "Dropout"):
        value = _read(producer)[-1] if producer.op_type == "Where" else _read(producer)[0]
        producer = value.producer()
    return producer is not None and producer.domain == "" and producer.op_type == "Softmax"


def _with_transposed_convolutions(
    graph: ir.Graph,
    plan: Plan,
    scheme: Scheme,
    selection: NodeSelection,
    unfit: Mapping[str, str],
    kept_float: Mapping[str, str],
) -> Plan:
    activations, weights = dict(plan.activations), dict(plan.weights)
    integer_nodes, skipped = dict(plan.integer_nodes), list(plan.skipped)
    for node in graph:
        if node.domain != "" or node.op_type != "ConvTranspose":
            continue
        name = node.name or ""
        source, weight = node.inputs[0], node.inputs[1]
        reason = kept_float.get(name) or selection.reason_to_skip(node) or _reason_of_form(node, weights, activations)
        if reason is None and source is not None and (source.name or "") in unfit:
            reason = f"'{source.name}' {unfit[source.name or '']}"
        if reason is not None or source is None or weight is None:
            skipped.append(Skipped(node=name, operator=node.op_type, reason=reason or "an input is missing"))
            continue
        grid = scheme.activations if _is_not_negative(source) else S8_SYMMETRIC
        known = activations.get(source.name or "")
        readers = frozenset({name}) if known is None or known.readers is None else known.readers | {name}
        activations[source.name or ""] = ActivationPlan(
            tensor=source.name or "", grid=grid, source=source.name or "", readers=readers
        )
        per_channel = scheme.per_channel and integer_attribute(node, "group", 1) == 1
        weights[weight.name or ""] = WeightPlan(
            tensor=weight.name or "",
            grid=scheme.weights,
            granularity=PerChannel(1) if per_channel else PerTensor(),
            nodes=(name,),
        )
        integer_nodes[name] = node.op_type
    return replace(plan, activations=activations, weights=weights, integer_nodes=integer_nodes, skipped=tuple(skipped))


def _reason_of_form(
    node: ir.Node, weights: Mapping[str, WeightPlan], activations: Mapping[str, ActivationPlan]
) -> str | None:
    source, weight = node.inputs[0], node.inputs[1]
    if source is None or weight is None or is_constant(source):
        return "an input is missing"
    if constant_array(weight) is None or weight.dtype != ir.DataType.FLOAT:
        return "its weights are not float32 constants"
    if (weight.name or "") in weights:
        return "it shares its weights with a layer of another kind"
    if (source.name or "") in activations and not _is_not_negative(source):
        return "its input is read by other layers as well, on another grid"
    return None


def _is_not_negative(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None or producer.domain != "":
        return False
    if producer.op_type == "Clip":
        return clip_bounds(producer)[0] >= 0.0
    return producer.op_type in _NOT_NEGATIVE


def _with_earlier(
    graph: ir.Graph,
    planned: Mapping[str, ActivationPlan],
    unfit: Mapping[str, str],
    kept_float: Mapping[str, str],
) -> dict[str, ActivationPlan]:
    """Returns the plans, with those behind operators that move values before them, and further ones before pools."""
    found = dict(planned)
    # A node comes after those that it reads from: backwards, what was moved last is seen first.
    for node in reversed(list(graph)):
        moves = _moves(node)
        if not (moves or _pools(node)) or (node.name or "") in kept_float:
            continue
        before, after = node.inputs[0], node.outputs[0]
        plan = found.get(after.name or "")
        if plan is None or before is None or is_constant(before) or before.dtype != ir.DataType.FLOAT:
            continue
        if (before.name or "") in unfit or after.is_graph_output() or not _is_all_read(after, plan):
            continue
        earlier = found.get(before.name or "")
        if earlier is not None and (earlier.grid != plan.grid or earlier.readers is None):
            continue
        readers = frozenset({node.name or ""}) | (frozenset() if earlier is None else earlier.readers or frozenset())
        # Q can be fused into what computes a tensor only where nothing reads its floats.
        fuses = before.producer() is not None and all((use.node.name or "") in readers for use in before.uses())
        if not fuses or before.is_graph_output():
            continue
        found[before.name or ""] = ActivationPlan(
            tensor=before.name or "", grid=plan.grid, source=before.name or "", readers=readers
        )
        if moves:
            del found[after.name or ""]
    return found


def _is_all_read(value: ir.Value, plan: ActivationPlan) -> bool:
    return plan.readers is None or all((use.node.name or "") in plan.readers for use in value.uses())


def _moves(node: ir.Node) -> bool:
    operator = OPERATORS.get(node.op_type) if node.domain == "" else None
    if operator is None or operator.kind is not Kind.MOVING or len(node.outputs) > 1:
        return False
    mode = node.attributes.get("mode") if node.op_type == "Resize" else None
    return node.op_type != "Resize" or (mode is None or mode.as_string() == "nearest")


def _pools(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in _POOLS
