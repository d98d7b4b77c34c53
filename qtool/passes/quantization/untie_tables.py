"""Unties the weight of a layer from an embedding table."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qtool.graph.constants import integer_attribute
from qtool.passes.quantization.fold_weight_transposes import FoldWeightTransposes


class UntieTables(FoldWeightTransposes):
    """Replaces Transpose(table), read by one layer, by the transposed table, where all else that reads it are Gathers.

    Both become integers of their own, with scales that suit rows and products, and together take half of the floats.
    """

    readers: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm"})

    def may_fold(self, weight: ir.Value, transpose: ir.Node) -> bool:
        """Returns whether the table is read by ``transpose`` and Gathers alone."""
        return all(use.node is transpose or _looks_up(use.node, use.idx) for use in weight.uses())


def _looks_up(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 0 and integer_attribute(node, "axis", 0) == 0
