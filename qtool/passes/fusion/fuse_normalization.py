"""Recognizes LayerNormalization and RMSNormalization.

Sources: Ba et al., Layer Normalization, https://arxiv.org/abs/1607.06450; Zhang and Sennrich, Root Mean Square Layer
Normalization, https://arxiv.org/abs/1910.07467.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qtool.graph.constants import constant_array, integer_attribute
from qtool.graph.views import axes_of
from qtool.passes.fusion.fusion import Fused, Fusion
from qtool.passes.fusion.matching import Match, Number, Op, Stored, Tensor

_FIRST_WITH_LAYER = 17
_FIRST_WITH_RMS = 23
_X, _SCALE, _BIAS, _EPSILON = Tensor("x"), Stored("scale"), Stored("bias"), Number(name="epsilon")


def _keeps_last_axis(node: ir.Node) -> bool:
    """Returns whether a reduction is over the last axis, which stays with a length of 1."""
    axes, source = axes_of(node), node.inputs[0]
    if axes is None or len(axes) != 1 or not integer_attribute(node, "keepdims", 1) or source is None:
        return False
    return axes[0] == -1 or (source.shape is not None and axes[0] == len(source.shape) - 1)


def _mean(pattern: Op | Tensor) -> Op:
    return Op("ReduceMean", (pattern,), more=True, accepts=_keeps_last_axis)


def _squares(pattern: Op | Tensor) -> tuple[Op, ...]:
    return (Op("Pow", (pattern, Number(2.0))), Op("Mul", (pattern, pattern)))


def _normalized(pattern: Op | Tensor) -> tuple[Op, ...]:
    """Returns the forms of a value over the root of its mean square."""
    forms: list[Op] = []
    for square in _squares(pattern):
        variance = Op("Add", (_mean(square), _EPSILON))
        root = Op("Sqrt", (variance,))
        forms += [
            Op("Div", (pattern, root)),
            Op("Mul", (pattern, Op("Reciprocal", (root,)))),
            Op("Mul", (pattern, Op("Div", (Number(1.0), root)))),
            Op("Mul", (pattern, Op("Pow", (variance, Number(-0.5))))),
        ]
    return tuple(forms)


_CENTRED = Op("Sub", (_X, _mean(_X)))


class FuseLayerNormalization(Fusion):
    """Replaces a decomposed LayerNormalization over the last axis by the operator of opset 17."""

    patterns: ClassVar[tuple[Op, ...]] = (
        *(Op("Add", (Op("Mul", (form, _SCALE)), _BIAS)) for form in _normalized(_CENTRED)),
        *(Op("Mul", (form, _SCALE)) for form in _normalized(_CENTRED)),
    )

    def fused(self, match: Match) -> Fused | None:
        """Needs the opset, and a scale and a bias for each element of the last axis."""
        if self.opset < _FIRST_WITH_LAYER or not _one_an_element(match):
            return None
        # Where a bias follows, the pattern with the bias matches later.
        if "bias" not in match.values and _bias_follows(match.nodes[0]):
            return None
        inputs = [match.values[name] for name in ("x", "scale", "bias") if name in match.values]
        return Fused(op_type="LayerNormalization", inputs=inputs, attributes=_attributes(match))


class FuseRmsNormalization(Fusion):
    """Replaces a decomposed RMSNormalization over the last axis by the operator of opset 23."""

    patterns: ClassVar[tuple[Op, ...]] = tuple(Op("Mul", (form, _SCALE)) for form in _normalized(_X))

    def fused(self, match: Match) -> Fused | None:
        """Needs the opset, and a scale for each element of the last axis."""
        if self.opset < _FIRST_WITH_RMS or not _one_an_element(match):
            return None
        inputs = [match.values["x"], match.values["scale"]]
        return Fused(op_type="RMSNormalization", inputs=inputs, attributes=_attributes(match))


def _attributes(match: Match) -> dict[str, int | float]:
    return {"axis": -1, "epsilon": match.number("epsilon")}


def _one_an_element(match: Match) -> bool:
    """Returns whether scale and bias have the type of what they scale and the length of its last axis."""
    value = match.values["x"]
    for name in ("scale", "bias"):
        array = constant_array(match.values.get(name))
        if array is None:
            continue
        if array.ndim != 1 or value.dtype != match.values[name].dtype:
            return False
        if value.shape is None or value.shape[-1] != array.shape[0]:
            return False
    return True


def _bias_follows(node: ir.Node) -> bool:
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.domain != "":
        return False
    return any(constant_array(value) is not None for value in uses[0].node.inputs)
