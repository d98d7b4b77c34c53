"""Turns the options of ``qtool quantize`` into a scheme and a range method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.calib.grid import Grid
    from qtool.calib.ranges import RangeMethod
    from qtool.schemes import Scheme


class Method(StrEnum):
    """The range methods by name, and the choice among them."""

    AUTO = "auto"
    MINMAX = "minmax"
    MOVING_AVERAGE = "moving-average"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


class SchemeName(StrEnum):
    """When activations get their ranges."""

    STATIC = "static"
    DYNAMIC = "dynamic"


class EffortName(StrEnum):
    """How much time goes into the quality of a result."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


class IntegerType(StrEnum):
    """The integers that tensors can become."""

    U8 = "u8"
    S8 = "s8"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """The parameters of the range methods; None where they are not given."""

    percentile: float | None
    spread: float | None
    entropy_bins: int | None
    mse_candidates: int | None

    def range_method(self, name: Method) -> RangeMethod:
        """Returns the method with its own parameter.

        Raises:
            UsageError: a parameter of another method is given.
            CalibError: the parameter makes no sense.
        """
        from qtool.calib.ranges.entropy import Entropy
        from qtool.calib.ranges.min_max import MinMax
        from qtool.calib.ranges.moving_average import MovingAverage
        from qtool.calib.ranges.mse import MeanSquaredError
        from qtool.calib.ranges.percentile import Percentile

        owners = {
            "--percentile": (Method.PERCENTILE, self.percentile),
            "--spread": (Method.MOVING_AVERAGE, self.spread),
            "--entropy-bins": (Method.ENTROPY, self.entropy_bins),
            "--mse-candidates": (Method.MSE, self.mse_candidates),
        }
        for option, (owner, value) in owners.items():
            if value is not None and owner is not name:
                raise UsageError(
                    f"{option} says nothing to the method {name.value}",
                    fix=f"add --method {owner.value}, or drop {option}",
                )
        if name in (Method.AUTO, Method.MINMAX):
            return MinMax()
        if name is Method.MOVING_AVERAGE:
            return MovingAverage() if self.spread is None else MovingAverage(self.spread)
        if name is Method.PERCENTILE:
            return Percentile() if self.percentile is None else Percentile(self.percentile / 100.0)
        if name is Method.ENTROPY:
            return Entropy() if self.entropy_bins is None else Entropy(self.entropy_bins)
        return MeanSquaredError() if self.mse_candidates is None else MeanSquaredError(self.mse_candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeOptions:
    """What the options say about integers; None where they leave it to the target."""

    per_channel: bool | None
    weights_symmetric: bool | None
    activations_symmetric: bool | None
    activation_type: IntegerType | None
    weight_type: IntegerType | None

    def changed(self, target: Scheme, *, dynamic: bool) -> Scheme:
        """Returns the target's scheme with what the options change in it.

        ``dynamic`` tells whether activations are to be quantized as the model runs.

        Raises:
            UsageError: the target has no kernel for the combination.
        """
        from qtool.backends.registry import backend_named

        if dynamic and not backend_named(target.backend).runs_dynamic_layers:
            raise UsageError(
                f"--scheme dynamic is for onnxruntime's CPU provider, not for {target.machine}",
                fix="use --scheme static, or the target of a CPU",
            )
        scheme = replace(
            target,
            activations=_changed(target.activations, self.activation_type, self.activations_symmetric),
            weights=_changed(target.weights, self.weight_type, self.weights_symmetric),
            per_channel=target.per_channel if self.per_channel is None else self.per_channel,
        )
        if scheme.activations.signed and not scheme.weights.signed:
            raise UsageError(
                f"{target.machine} has no kernel for s8 activations with u8 weights",
                fix="use --weight-type s8, or --activation-type u8",
            )
        return scheme


def _changed(grid: Grid, kind: IntegerType | None, symmetric: bool | None) -> Grid:
    return replace(
        grid,
        signed=grid.signed if kind is None else kind is IntegerType.S8,
        symmetric=grid.symmetric if symmetric is None else symmetric,
    )
