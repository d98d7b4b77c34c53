"""Applies rewrite rules of onnxscript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import RewritePass


def apply_rules(model: ir.Model, rules: Sequence[Any], operators: frozenset[str]) -> bool:
    """Applies rules wherever they match, and returns whether anything changed.

    They also remove unused nodes, which the library does not count.

    Args:
        model: the model.
        rules: the rules.
        operators: operators without which no rule can match.
    """
    if not any(node.op_type in operators for node in model.graph.all_nodes()):
        return False
    before = _size(model)
    applied = RewritePass(rules)(model).modified
    return bool(applied) or _size(model) != before


def _size(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes()) + len(model.graph.initializers)
