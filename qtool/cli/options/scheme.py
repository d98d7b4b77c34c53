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


class WeightType(StrEnum):
    """What weights can become: integers, or 8-bit floats."""

    U8 = "u8"
    S8 = "s8"
    E4M3 = "e4m3"
    E5M2 = "e5m2"


class ActivationType(StrEnum):
    """What activations can become: integers, or 8-bit floats."""

    U8 = "u8"
    S8 = "s8"
    U16 = "u16"
    S16 = "s16"
    E4M3 = "e4m3"
    E5M2 = "e5m2"


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
    ActivationType | None,
    typer.Option(
        "--activation-type",
        help="Integers, or fp8. Default: the target's.",
        rich_help_panel=SCHEME,
    ),
]
WeightTypeOption: TypeAlias = Annotated[
    WeightType | None,
    typer.Option("--weight-type", help="Integers, or fp8. Default: the target's.", rich_help_panel=SCHEME),
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
    activation_type: ActivationType | None
    weight_type: WeightType | None

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
        if _is_float8(self.activation_type) or _is_float8(self.weight_type):
            return self._with_float8(target, dynamic=dynamic)
        scheme = replace(
            target,
            activations=_changed(target.activations, self.activation_type, self.activations_symmetric),
            weights=_changed(target.weights, self.weight_type, self.weights_symmetric),
            per_channel=target.per_channel if self.per_channel is None else self.per_channel,
        )
        if scheme.activations.bits not in target.activation_bits:
            raise UsageError(
                f"{target.machine} has no integer kernels for {self.activation_type} activations: it would compute in "
                "float between Q and DQ",
                fix="use --activation-type u8 or s8, or the target of an NPU that computes with them: --target qnn",
            )
        if scheme.activations.signed and not scheme.weights.signed:
            raise UsageError(
                f"{target.machine} has no kernel for s8 activations with u8 weights",
                fix="use --weight-type s8, or --activation-type u8",
            )
        return scheme

    def _with_float8(self, target: Scheme, *, dynamic: bool) -> Scheme:
        """Returns the target's scheme with 8-bit floats for both factors of products.

        Raises:
            UsageError: the target takes none, or the other factor is to be integers.
        """
        from qtool.calib.grid import Float8, Grid

        asked = self.activation_type if _is_float8(self.activation_type) else self.weight_type
        if dynamic or not target.takes_float8:
            raise UsageError(
                f"{target.machine} has no kernels for 8-bit floats ({asked})"
                if not dynamic
                else f"{asked} has no effect with --scheme dynamic",
                fix="use integers, or --target tensorrt, whose GPUs multiply e4m3 since Ada and Hopper",
            )
        kinds = [self.activation_type or asked, self.weight_type or asked]
        if not all(map(_is_float8, kinds)):
            raise UsageError(
                "no kernel multiplies 8-bit floats with integers",
                fix=f"give --activation-type {asked} and --weight-type {asked}",
            )
        if False in (self.weights_symmetric, self.activations_symmetric):
            raise UsageError(
                "8-bit floats have no zero point", fix="drop --weights-asymmetric, --activations-asymmetric"
            )
        activations, weights = (Grid(float8=Float8(str(kind))) for kind in kinds)
        per_channel = target.per_channel if self.per_channel is None else self.per_channel
        return replace(target, activations=activations, weights=weights, per_channel=per_channel)


def _is_float8(kind: ActivationType | WeightType | None) -> bool:
    return kind is not None and kind.startswith("e")


def _changed(grid: Grid, kind: WeightType | ActivationType | None, symmetric: bool | None) -> Grid:
    return replace(
        grid,
        bits=grid.bits if kind is None else int(kind[1:]),
        signed=grid.signed if kind is None else kind.startswith("s"),
        symmetric=grid.symmetric if symmetric is None else symmetric,
    )
