"""Makes the plan of a quantization from a graph, a scheme and a selection of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from qtool.errors import InputError, UsageError
from qtool.plan import NOTHING_DYNAMIC, NOTHING_KEPT, NOTHING_UNFIT, DynamicPlan, Plan, Skipped, WeightOnlyPlan
from qtool.schemes import DynamicScheme, Scheme, WeightOnlyScheme
from qtool.selection import NodeSelection


def build_plan(
    model: ir.Model,
    scheme: Scheme,
    selection: NodeSelection,
    *,
    unfit: Mapping[str, str] = NOTHING_UNFIT,
    kept_float: Mapping[str, str] = NOTHING_KEPT,
    may_be_empty: bool = False,
) -> Plan:
    """Decides about every tensor of a prepared model, from its graph alone.

    Args:
        model: as ``prepare`` leaves it.
        scheme: which integers tensors become.
        selection: which nodes may be quantized.
        unfit: tensors that data has shown to be unfit for integers, each with the reason.
        kept_float: by exact name, nodes that a search keeps float, each with the reason.
        may_be_empty: whether a plan that quantizes nothing is a result.

    Raises:
        InputError: the model is quantized already, or nothing in it can be quantized and the plan may not be empty.
        UsageError: a pattern of ``selection`` matches nothing.
    """
    from qtool.backends.qdq_placement.logarithms import layers_before_logarithms
    from qtool.backends.registry import backend_named

    _check_float(model)
    selection.check(list(model.graph))
    dynamic = _chosen_dynamic(model, scheme, selection, kept_float) if selection.dynamic else NOTHING_DYNAMIC
    kept = dict.fromkeys(dynamic.integer_nodes, "its activations are quantized as it runs")
    kept = {**layers_before_logarithms(model.graph), **kept, **kept_float}
    plan = backend_named(scheme.backend).place(model.graph, scheme, selection, unfit, kept)
    if dynamic.integer_nodes:
        skipped = tuple(skip for skip in plan.skipped if skip.node not in dynamic.integer_nodes)
        plan = replace(plan, skipped=skipped, dynamic=dynamic)
    if not (plan.integer_nodes or dynamic.integer_nodes or may_be_empty):
        raise InputError(
            f"nothing in the model can be quantized{_in_short(plan.skipped)}",
            fix="quantize a model with Conv, Gemm or MatMul layers, or loosen --include and --exclude",
        )
    return plan


def build_dynamic_plan(
    model: ir.Model, scheme: DynamicScheme, selection: NodeSelection, *, may_be_empty: bool = False
) -> DynamicPlan:
    """Decides which layers of a prepared model quantize their activations as they run, from its graph alone.

    Raises:
        InputError: the model is quantized already, or nothing in it can be quantized in this way and the plan may not
            be empty.
        UsageError: a pattern of ``selection`` matches nothing.
    """
    from qtool.backends.registry import backend_named

    _check_float(model)
    selection.check(list(model.graph))
    plan = backend_named(scheme.backend).place_dynamic(model.graph, scheme, selection.reason_to_skip)
    if not (plan.integer_nodes or may_be_empty):
        raise InputError(
            f"nothing in the model can be quantized dynamically{_in_short(plan.skipped)}",
            fix="give a model with MatMul, Gemm or LSTM layers, loosen --include and --exclude, or use --scheme static",
        )
    return plan


def build_weight_only_plan(model: ir.Model, scheme: WeightOnlyScheme, selection: NodeSelection) -> WeightOnlyPlan:
    """Decides which layers of a prepared model get integer weights and keep float activations, from its graph alone.

    Raises:
        InputError: the model is quantized already, or nothing in it can be quantized in this way.
        UsageError: a pattern of ``selection`` matches nothing.
    """
    from qtool.backends.registry import backend_named

    _check_float(model)
    selection.check(list(model.graph))
    plan = backend_named(scheme.backend).place_weights(model.graph, scheme.grid, selection.reason_to_skip)
    if not plan.layers:
        raise InputError(
            f"no weights in the model can be quantized alone{_in_short(plan.skipped)}",
            fix="give a model with MatMul or Gemm layers, loosen --include and --exclude, or use --scheme static",
        )
    return plan


def _chosen_dynamic(
    model: ir.Model, scheme: Scheme, selection: NodeSelection, kept_float: Mapping[str, str]
) -> DynamicPlan:
    """Places the layers that the user wants dynamic in a static model, and those that share weights with them."""
    from qtool.backends.registry import backend_named

    backend = backend_named(scheme.backend)
    if not backend.runs_dynamic_layers:
        raise UsageError(
            f"--dynamic is for onnxruntime's CPU provider, not for {scheme.machine}",
            fix="drop --dynamic, or quantize for another target",
        )

    def reason_to_skip(node: ir.Node) -> str | None:
        weight = node.inputs[1]
        sharing = [node] if weight is None else [use.node for use in weight.uses()]
        wanted = any(selection.wants_dynamic(reader) for reader in sharing)
        if not wanted:
            return "no --dynamic pattern matches it"
        return kept_float.get(node.name or "") or selection.reason_to_skip(node)

    wish = DynamicScheme(weights=scheme.weights, per_channel=scheme.per_channel, largest_pair=scheme.largest_pair)
    plan = backend.place_dynamic(model.graph, wish, reason_to_skip)
    if not plan.integer_nodes and not kept_float:
        wanted = {node.name for node in model.graph if selection.wants_dynamic(node)}
        skipped = tuple(skip for skip in plan.skipped if skip.node in wanted)
        raise UsageError(
            f"no node that --dynamic matches can be quantized dynamically{_in_short(skipped)}",
            fix="name MatMul or Gemm layers with stored weights, or drop --dynamic",
        )
    return plan


def _check_float(model: ir.Model) -> None:
    """Rejects a model that has integer arithmetic in it."""
    quantized = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"}
    quantized |= {"MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeLSTM"}
    if any(node.op_type in quantized for node in model.graph):
        raise InputError(
            "the model is quantized already", fix="start from the float model, or undo it with `qtool dequantize` first"
        )


def _in_short(skipped: tuple[Skipped, ...]) -> str:
    """Gives the first few reasons, in brackets."""
    reasons = sorted({f"{skip.operator}: {skip.reason}" for skip in skipped})
    return f" ({'; '.join(reasons[:3])})" if reasons else ""
