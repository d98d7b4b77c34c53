"""Gives nodes that the plan left float the plan's reason, and the option that changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qtool.backends.coverage import Coverage, NodeCoverage
from qtool.plan import Skipped

_FIXES = (
    ("kept float for accuracy", "pass --max-float 0 to quantize it anyway"),
    ("kept float for", "lower that goal, or give none"),
    ("integers save no time", "pass --smallest to quantize it anyway"),
    ("--exclude ", "drop that --exclude"),
    ("no --include", "name it with --include, or drop --include"),
)
# Advice that does not apply to a command that has just quantized the model without these options.
_IN_VAIN = ("`qtool quantize`", "--include or --exclude")


def fix_for_plan(reason: str) -> str | None:
    """Returns the option that reverts a decision of the user or a search; None where neither decided."""
    return next((fix for start, fix in _FIXES if reason.startswith(start)), None)


def as_planned(coverage: Coverage, skipped: Sequence[Skipped], *, has_kernels_here: bool) -> Coverage:
    """Returns ``coverage`` with the reasons of the plan.

    Args:
        coverage: how onnxruntime's CPU provider runs the model that was quantized as planned.
        skipped: the nodes that the plan left float.
        has_kernels_here: whether the model was quantized for that provider; its advice does not apply to others.
    """
    reasons = {skip.node: skip.reason for skip in skipped}
    nodes = tuple(_as_planned(node, reasons.get(node.node), has_kernels_here) for node in coverage.nodes)
    return replace(coverage, nodes=nodes)


def _as_planned(node: NodeCoverage, planned: str | None, has_kernels_here: bool) -> NodeCoverage:
    if node.kernel is not None:
        return node
    if planned is not None:
        return replace(node, reason=planned, fix=fix_for_plan(planned))
    if not has_kernels_here:
        return replace(node, fix=None)
    if node.fix is not None and any(part in node.fix for part in _IN_VAIN):
        return replace(node, fix=f"avoid its conversions with --exclude '{node.node}'")
    return node
