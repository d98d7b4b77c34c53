"""Recognizes scaled dot-product attention.

Sources: Vaswani et al., Attention Is All You Need, https://arxiv.org/abs/1706.03762, section 3.2.1; operator Attention
of ONNX's opset 23.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qtool.graph.constants import integer_attribute
from qtool.passes.fusion.fusion import Fused, Fusion
from qtool.passes.fusion.matching import Match, Number, Op, Tensor

_FIRST_OPSET = 23
# (batch, heads, steps, length)
_RANK = 4
_SWAPPED = [0, 1, 3, 2]


def _over_last_axis(node: ir.Node) -> bool:
    return integer_attribute(node, "axis", -1) in (-1, _RANK - 1)


def _swaps_last_axes(node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    return order is not None and list(order.as_ints()) == _SWAPPED


def _patterns() -> tuple[Op, ...]:
    keys = Op("Transpose", (Tensor("keys"),), accepts=_swaps_last_axes)
    products = Op("MatMul", (Tensor("queries"), keys))
    scaled = (
        Op("Mul", (products, Number(name="factor"))),
        Op("Div", (products, Number(name="divisor"))),
        Op("MatMul", (Op("Mul", (Tensor("queries"), Number(name="factor"))), keys)),
        products,
    )
    found = []
    for scores in scaled:
        for masked in (Op("Add", (scores, Tensor("mask"))), scores):
            weights = Op("Softmax", (masked,), accepts=_over_last_axis)
            found.append(Op("MatMul", (weights, Tensor("values"))))
    return tuple(found)


class FuseAttention(Fusion):
    """Replaces softmax(scale * q k^T + mask) v by Attention of opset 23.

    Tensors are (batch, heads, steps, length), with as many heads of keys and values as of queries.
    """

    patterns: ClassVar[tuple[Op, ...]] = _patterns()

    def fused(self, match: Match) -> Fused | None:
        """Requires the opset, and operands that are not broadcast."""
        values = [match.values[name] for name in ("queries", "keys", "values")]
        if self.opset < _FIRST_OPSET or any(value.shape is None or len(value.shape) != _RANK for value in values):
            return None
        if len({(value.dtype, *_leading(value)) for value in values}) != 1:
            return None
        mask = match.values.get("mask")
        if mask is not None and (mask.dtype != values[0].dtype or mask.shape is None or len(mask.shape) < 2):
            return None
        scale = 1.0
        if "factor" in match.values:
            scale = match.number("factor")
        elif "divisor" in match.values:
            scale = 1.0 / match.number("divisor")
        inputs = values if mask is None else [*values, mask]
        return Fused(op_type="Attention", inputs=inputs, attributes={"scale": scale})


def _leading(value: ir.Value) -> tuple[int | str | None, ...]:
    """Returns the number of samples and heads, as far as known by number or name."""
    dims = () if value.shape is None else value.shape[:2]
    return tuple(dim if isinstance(dim, int) else dim.value for dim in dims)
