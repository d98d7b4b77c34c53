"""Recognizes Gelu in its three forms: with Erf, with Tanh and with Sigmoid.

Source: Hendrycks and Gimpel, Gaussian Error Linear Units, https://arxiv.org/abs/1606.08415.
"""

from __future__ import annotations

import math
from typing import ClassVar

from qtool.passes.fusion.fusion import Fused, Fusion
from qtool.passes.fusion.matching import Match, Number, Op, Tensor
from qtool.passes.optimization.operators import ONNXRUNTIME_DOMAIN

_FIRST_WITH_GELU = 20
_X = Tensor("x")
_HALF, _ONE = Number(0.5), Number(1.0)
_SCALED = (Op("Div", (_X, Number(math.sqrt(2)))), Op("Mul", (_X, Number(math.sqrt(0.5)))))
_CUBES = (
    Op("Pow", (_X, Number(3.0))),
    Op("Mul", (_X, Op("Mul", (_X, _X)))),
    Op("Mul", (_X, Op("Pow", (_X, Number(2.0))))),
)
_CUBIC = (
    *(Op("Add", (_X, Op("Mul", (Number(0.044715), cube)))) for cube in _CUBES),
    # x (1 + 0.044715 x²), and products in the other order.
    Op("Mul", (_X, Op("Add", (_ONE, Op("Mul", (Op("Mul", (_X, Number(0.044715))), _X)))))),
    Op("Mul", (_X, Op("Add", (_ONE, Op("Mul", (Number(0.044715), Op("Mul", (_X, _X)))))))),
    Op("Add", (_X, Op("Mul", (_X, Op("Mul", (_X, Op("Mul", (_X, Number(0.044715))))))))),
)


def _gated(gate: Op) -> tuple[Op, ...]:
    """Returns the orders in which x, one half and 1 + gate are multiplied."""
    raised = Op("Add", (_ONE, gate))
    return (
        Op("Mul", (_HALF, Op("Mul", (_X, raised)))),
        Op("Mul", (_X, Op("Mul", (_HALF, raised)))),
        Op("Mul", (raised, Op("Mul", (_HALF, _X)))),
        Op("Div", (Op("Mul", (_X, raised)), Number(2.0))),
    )


_ERF = tuple(pattern for scaled in _SCALED for pattern in _gated(Op("Erf", (scaled,), name="erf")))
_TANH = tuple(
    pattern
    for cubic in _CUBIC
    for pattern in _gated(Op("Tanh", (Op("Mul", (Number(math.sqrt(2 / math.pi)), cubic)),), name="tanh"))
)
_SIGMOID = (Op("Mul", (_X, Op("Sigmoid", (Op("Mul", (_X, Number(1.702))),), name="sigmoid"))),)


class FuseGelu(Fusion):
    """Replaces a decomposed Gelu by Gelu of opset 20 or of onnxruntime.

    The form with Sigmoid is a different function, which only onnxruntime has an operator for.
    """

    patterns: ClassVar[tuple[Op, ...]] = (*_ERF, *_TANH, *_SIGMOID)

    def fused(self, match: Match) -> Fused | None:
        """Chooses the operator by the form and by what there is."""
        inputs = [match.values["x"]]
        if "sigmoid" in match.named:
            if not self.operators.onnxruntime:
                return None
            return Fused(op_type="QuickGelu", inputs=inputs, attributes={"alpha": 1.702}, domain=ONNXRUNTIME_DOMAIN)
        if self.opset >= _FIRST_WITH_GELU:
            form = "none" if "erf" in match.named else "tanh"
            return Fused(op_type="Gelu", inputs=inputs, attributes={"approximate": form})
        if self.operators.onnxruntime:
            op_type = "Gelu" if "erf" in match.named else "FastGelu"
            return Fused(op_type=op_type, inputs=inputs, domain=ONNXRUNTIME_DOMAIN)
        return None
