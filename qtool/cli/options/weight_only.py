"""The options of ``qtool quantize --scheme weights``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from qtool.cli.options.groups import WEIGHT_ONLY
from qtool.errors import UsageError
from qtool.weights.block_choices import BlockMethod, WeightFormat

if TYPE_CHECKING:
    from qtool.schemes import Scheme, WeightOnlyScheme

DEFAULT_BITS = 4
_DEFAULT_BLOCK = 32
_BLOCKS = (16, 32, 64, 128, 256)
_BITS = (2, 4, 8)
AUTO = "auto"
_METHODS = (AUTO, *BlockMethod)
_LEVELS = {AUTO: None, "0": 0, "4": 4}

BitsOption: TypeAlias = Annotated[
    int, typer.Option("--bits", metavar="2|4|8", help="Bits of a weight.", rich_help_panel=WEIGHT_ONLY)
]
BlockSizeOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--block-size", metavar="16..256", help="Inputs that share a scale (32).", rich_help_panel=WEIGHT_ONLY
    ),
]
WeightMethodOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--weight-method", metavar="|".join(_METHODS), help="What chooses integers.", rich_help_panel=WEIGHT_ONLY
    ),
]
AccuracyLevelOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--accuracy-level",
        metavar="|".join(_LEVELS),
        help="Float products (0), or 8-bit ones (4).",
        rich_help_panel=WEIGHT_ONLY,
    ),
]
FormatOption: TypeAlias = Annotated[
    WeightFormat,
    typer.Option("--format", help="MatMulNBits, or DequantizeLinear.", rich_help_panel=WEIGHT_ONLY),
]


def weight_only_scheme(
    target: Scheme,
    *,
    bits: int,
    block_size: int | None,
    per_channel: bool | None,
    symmetric: bool | None,
    form: WeightFormat,
) -> WeightOnlyScheme:
    """Returns the scheme that the options describe; asymmetric blocks of 32 by default.

    Raises:
        UsageError: there is no such scheme.
    """
    from qtool.backends.registry import backend_named
    from qtool.schemes import WeightOnlyScheme
    from qtool.weights.block_grid import BlockGrid

    if not backend_named(target.backend).runs_weight_only:
        raise UsageError(
            f"--scheme weights is for onnxruntime's CPU provider, not for {target.machine}",
            fix="use --scheme static, or the target of a CPU",
        )
    if bits not in _BITS:
        raise UsageError(f"there are no weights of {bits} bits", fix="use --bits 2, 4 or 8")
    if per_channel and block_size is not None:
        raise UsageError("--per-channel and --block-size exclude each other", fix="give one of them")
    if per_channel is False:
        raise UsageError("--per-tensor has no effect with --scheme weights", fix="use --block-size or --per-channel")
    if block_size is not None and block_size not in _BLOCKS:
        raise UsageError(
            f"there are no blocks of {block_size}", fix=f"use one of {', '.join(str(size) for size in _BLOCKS)}"
        )
    if form is WeightFormat.QDQ and bits == min(_BITS):
        raise UsageError("DequantizeLinear of opset 21 reads no weights of 2 bits", fix="use --format nbits")
    block = None if per_channel else _DEFAULT_BLOCK if block_size is None else block_size
    grid = BlockGrid(bits=bits, block=block, symmetric=bool(symmetric))
    return WeightOnlyScheme(grid=grid, form=form, target=target.target, backend=target.backend)


def block_method(given: str, *, has_data: bool) -> BlockMethod | None:
    """Returns the method that the option names; None for what fits best.

    Raises:
        UsageError: there is no such method, or it needs data.
    """
    if given not in _METHODS:
        raise UsageError(f"there is no weight method '{given}'", fix=f"use one of {', '.join(_METHODS)}")
    if given == BlockMethod.GPTQ and not has_data:
        raise UsageError("--weight-method gptq needs calibration data", fix="add --calib-data, or use mse")
    return None if given == AUTO else BlockMethod(given)


def accuracy_level(given: str, form: WeightFormat) -> int | None:
    """Returns the level that the option names; None for one that is chosen.

    Raises:
        UsageError: there is no such level, or the format has none.
    """
    if given not in _LEVELS:
        raise UsageError(f"there is no accuracy level '{given}'", fix=f"use one of {', '.join(_LEVELS)}")
    if form is WeightFormat.QDQ and _LEVELS[given] is not None:
        raise UsageError("--accuracy-level is for --format nbits", fix="drop it: onnxruntime chooses by itself")
    return _LEVELS[given]
