"""The options that say which integers tensors become, and the scheme that they ask for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from qtool.cli.options.groups import SCHEME
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.calib.grid import Grid
    from qtool.schemes import Scheme


class SchemeName(StrEnum):
    """When activations get their ranges, or that they stay float."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHTS = "weights"


class IntegerType(StrEnum):
    """The integers that tensors can become."""

    U8 = "u8"
    S8 = "s8"


SchemeOption: TypeAlias = Annotated[
    SchemeName | None,
    typer.Option(
        "--scheme",
        help="Static QDQ, dynamic, or weights alone. Default: static; dynamic for language models.",
        rich_help_panel=SCHEME,
    ),
]
PerChannelOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--per-channel/--per-tensor",
        help="Scales of weights. Default: the target's.",
        rich_help_panel=SCHEME,
    ),
]
WeightsSymmetricOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--weights-symmetric/--weights-asymmetric",
        help="Zero point fixed or free. Default: the target's.",
        rich_help_panel=SCHEME,
    ),
]
ActivationsSymmetricOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--activations-symmetric/--activations-asymmetric",
        help="Zero point fixed or free. Default: the target's.",
        rich_help_panel=SCHEME,
    ),
]
ActivationTypeOption: TypeAlias = Annotated[
    IntegerType | None,
    typer.Option("--activation-type", help="Integers of activations. Default: the target's.", rich_help_panel=SCHEME),
]
WeightTypeOption: TypeAlias = Annotated[
    IntegerType | None,
    typer.Option("--weight-type", help="Integers of weights. Default: the target's.", rich_help_panel=SCHEME),
]
IncludeOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="PATTERN",
        help="Quantize only these nodes or operators: Conv, /head/*, re:layer[0-3].*; repeatable.",
        rich_help_panel=SCHEME,
    ),
]
ExcludeOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="PATTERN", help="Keep these nodes or operators float; repeatable.", rich_help_panel=SCHEME
    ),
]
DynamicOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="PATTERN",
        help="Quantize these at run time; repeatable.",
        rich_help_panel=SCHEME,
    ),
]


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
