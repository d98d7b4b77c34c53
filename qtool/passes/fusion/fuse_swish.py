"""Recognizes SiLU, alone and inside of SwiGLU, and HardSwish.

Sources: Ramachandran et al., Searching for Activation Functions, https://arxiv.org/abs/1710.05941; Shazeer, GLU
Candidates Improve Transformer, https://arxiv.org/abs/2002.05202; Howard et al., Searching for MobileNetV3,
https://arxiv.org/abs/1905.02244.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qtool.passes.fusion.fusion import Fused, Fusion
from qtool.passes.fusion.matching import Match, Number, Op, Tensor
from qtool.passes.optimization.operators import ONNXRUNTIME_DOMAIN

_FIRST_WITH_SWISH = 24
_FIRST_WITH_HARD_SWISH = 14
_X = Tensor("x")


def _is_hard_sigmoid(node: ir.Node) -> bool:
    """Returns whether a HardSigmoid is max(0, min(1, x / 6 + 1 / 2))."""
    alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
    slope = 0.2 if alpha is None else alpha.as_float()
    return bool(np.isclose(slope, 1 / 6, rtol=1e-4)) and (beta is None or beta.as_float() == 0.5)


_CLIPPED = Op("Clip", (Op("Add", (_X, Number(3.0))), Number(0.0), Number(6.0)))


class FuseSwish(Fusion):
    """Replaces x * sigmoid(x) by Swish of opset 24, or QuickGelu of onnxruntime.

    SwiGLU of two layers becomes a Swish and a product.
    """

    patterns: ClassVar[tuple[Op, ...]] = (Op("Mul", (_X, Op("Sigmoid", (_X,)))),)

    def fused(self, match: Match) -> Fused | None:
        """Chooses the operator by what there is."""
        if self.opset >= _FIRST_WITH_SWISH:
            return Fused(op_type="Swish", inputs=[match.values["x"]])
        if self.operators.onnxruntime:
            # QuickGelu is x * sigmoid(alpha * x).
            attributes = {"alpha": 1.0}
            return Fused(
                op_type="QuickGelu", inputs=[match.values["x"]], attributes=attributes, domain=ONNXRUNTIME_DOMAIN
            )
        return None


class FuseHardSwish(Fusion):
    """Replaces x * clip(x + 3, 0, 6) / 6 by HardSwish of opset 14."""

    patterns: ClassVar[tuple[Op, ...]] = (
        Op("Mul", (_X, Op("HardSigmoid", (_X,), accepts=_is_hard_sigmoid))),
        Op("Mul", (_X, Op("Div", (_CLIPPED, Number(6.0))))),
        Op("Mul", (_X, Op("Mul", (_CLIPPED, Number(1 / 6))))),
        Op("Div", (Op("Mul", (_X, _CLIPPED)), Number(6.0))),
        Op("Mul", (Op("Mul", (_X, _CLIPPED)), Number(1 / 6))),
    )

    def fused(self, match: Match) -> Fused | None:
        """Needs the opset."""
        if self.opset < _FIRST_WITH_HARD_SWISH:
            return None
        return Fused(op_type="HardSwish", inputs=[match.values["x"]])
