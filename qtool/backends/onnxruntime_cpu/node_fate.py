"""Explains how onnxruntime's CPU provider runs a node: its kernel, its fusion, and why it is float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.coverage import coverage_in
from qtool.backends.onnxruntime_cpu.fusion_reasons import reason_for_float
from qtool.backends.qdq_placement.node_form import reason_without_kernel
from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.graph.constants import is_constant


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFate:
    """How one node runs.

    Attributes:
        kernel: the kernel that runs it; None where it was removed.
        integer: whether that kernel computes on integers.
        absorbed: whether it is fused into another kernel, or was removed.
        reason: why it computes in float; None where it does not.
        fix: how to change that; None where it does not compute in float.
        conversions: remaining Q and DQ next to it, each a pass over a whole tensor.
    """

    kernel: str | None
    integer: bool
    absorbed: bool
    reason: str | None
    fix: str | None
    conversions: int


def fate_of(model: ir.Model, node: ir.Node, kept: Mapping[str, ir.Node]) -> NodeFate:
    """Finds ``node`` of ``model`` among the nodes of ``optimized_nodes``."""
    found = kept.get(node.name or "")
    conversions = 0 if found is None else _conversions_beside(found)
    covered = next((row for row in coverage_in(model, kept).nodes if row.node == node.name), None)
    if covered is not None:
        return NodeFate(
            kernel=covered.kernel or (None if found is None else found.op_type),
            integer=covered.kernel is not None,
            absorbed=found is None,
            reason=covered.reason,
            fix=covered.fix,
            conversions=conversions,
        )
    if found is not None and found.op_type == "GatherBlockQuantized":
        # It looks rows up and makes floats of them: there is no arithmetic that integers could save.
        return NodeFate(
            kernel=found.op_type, integer=True, absorbed=False, reason=None, fix=None, conversions=conversions
        )
    if found is None:
        return NodeFate(kernel=None, integer=False, absorbed=True, reason=None, fix=None, conversions=0)
    reason, fix = _float_by_nature(node)
    return NodeFate(
        kernel=found.op_type, integer=False, absorbed=False, reason=reason, fix=fix, conversions=conversions
    )


def _float_by_nature(node: ir.Node) -> tuple[str, str]:
    operator = OPERATORS.get(node.op_type) if node.domain == "" else None
    if operator is None:
        return (
            reason_without_kernel(node.op_type, node.domain),
            "replace it in the model by an operator that has one: sums, products, Sigmoid, LeakyRelu, pooling",
        )
    if operator.kind is Kind.CLAMPING:
        readers = [use.node for value in node.outputs for use in value.uses()]
        if any(reader.op_type == "QuantizeLinear" for reader in readers):
            return "the integers after it do not end where it clamps", "quantize with --activations-asymmetric"
            return "no Q follows it to absorb it", "quantize its readers: drop --exclude, or pass --max-float 0"
    missed = reason_for_float(node)
    return missed.reason, missed.fix


def _conversions_beside(node: ir.Node) -> int:
    before = sum(
        producer.op_type == "DequantizeLinear" and not is_constant(producer.inputs[0])
        for value in node.inputs
        if value is not None and (producer := value.producer()) is not None
    )
    after = {use.node for value in node.outputs for use in value.uses() if use.node.op_type == "QuantizeLinear"}
    return before + len(after)
