"""Turns the options of ``qtool quantize`` into a scheme and a range method."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from qtool.errors import UsageError

if TYPE_CHECKING:
    from calib.ranges import RangeMethod
    from qtool.schemes import DynamicScheme, Scheme


class Method(StrEnum):
    """The range methods by name."""

    MINMAX = "minmax"
    MOVING_AVERAGE = "moving-average"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


class SchemeName(StrEnum):
    """When activations get their ranges."""

    STATIC = "static"
    DYNAMIC = "dynamic"


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
        from calib.ranges.entropy import Entropy
        from calib.ranges.min_max import MinMax
        from calib.ranges.moving_average import MovingAverage
        from calib.ranges.mse import MeanSquaredError
        from calib.ranges.percentile import Percentile

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
        if name is Method.MINMAX:
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
    """What the options say about integers."""

    per_channel: bool
    weights_symmetric: bool
    activations_symmetric: bool
    activation_type: IntegerType
    weight_type: IntegerType

    def scheme(self) -> Scheme:
        """Returns the scheme.

        Raises:
            UsageError: onnxruntime has no kernel for the combination.
        """
        from calib.grid import Grid
        from qtool.schemes import Scheme

        if self.activation_type is IntegerType.S8 and self.weight_type is IntegerType.U8:
            raise UsageError(
                "onnxruntime has no kernel for s8 activations with u8 weights",
                fix="use --weight-type s8, or --activation-type u8",
            )
        return Scheme(
            activations=Grid(
                bits=8, signed=self.activation_type is IntegerType.S8, symmetric=self.activations_symmetric
            ),
            weights=Grid(bits=8, signed=self.weight_type is IntegerType.S8, symmetric=self.weights_symmetric),
            per_channel=self.per_channel,
        )


def dynamic_scheme(weight_type: IntegerType, *, symmetric: bool, per_channel: bool) -> DynamicScheme:
    """Returns the scheme of a model whose activations are quantized as it runs."""
    from calib.grid import Grid
    from qtool.schemes import DynamicScheme

    signed = weight_type is IntegerType.S8
    return DynamicScheme(weights=Grid(bits=8, signed=signed, symmetric=symmetric), per_channel=per_channel)
