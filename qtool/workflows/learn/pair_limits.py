"""Keeps learned weights within the 16-bit sums of processors without VNNI, where the model was within them."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qtool.backends.targets import preset
from qtool.lora.onnx.pair_bound import within_bound
from qtool.qdq.scale_policy import ScalePolicy
from qtool.qdq.stored_integers import IntegerRules, stored_integers
from qtool.workflows.diagnose.overflow import bounds_pairs


def limit_of_pairs(model: ir.Model) -> Callable[[ir.Model], None] | None:
    """Returns what moves pairs of weights that are too large towards zero, in place; None where none needs it."""
    if not bounds_pairs(model):
        return None
    rules = IntegerRules(scales=ScalePolicy.KEEP, largest_pair=preset("x86").largest_pair)

    def limit(trained: ir.Model) -> None:
        for node in trained.graph:
            stored = stored_integers(node) if node.op_type == "DequantizeLinear" else None
            if stored is None:
                continue
            integers, _ = within_bound(node, stored, stored.floats(), stored.integers, stored.scale, rules)
            if integers is not stored.integers:
                stored.value.const_value = ir.tensor(integers.astype(stored.integers.dtype), name=stored.value.name)

    return limit
