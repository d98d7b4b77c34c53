"""The options of ``qtool quantize --scheme weights``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from qtool.cli.options.goal import share_of
from qtool.cli.options.groups import WEIGHT_ONLY
from qtool.errors import UsageError
from qtool.weights.blocks.choices import BlockMethod, WeightFormat

if TYPE_CHECKING:
    from qtool.schemes import Scheme, WeightOnlyScheme
    from qtool.workflows.quantize.weight_only_request import BitsGoal

_DEFAULT_BITS = 4
_MEGABYTE = 1e6
_DEFAULT_BLOCK = 32
_BLOCKS = (16, 32, 64, 128, 256)
_BITS = (2, 4, 8)
AUTO = "auto"
_METHODS = (AUTO, *BlockMethod)
_LEVELS = {AUTO: None, "0": 0, "4": 4}

BitsOption: TypeAlias = Annotated[
    int | None, typer.Option("--bits", metavar="2|4|8", help="Bits of a weight (4).", rich_help_panel=WEIGHT_ONLY)
]
MaxSizeOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--max-size", metavar="SIZE", help="Mixed bits: 90MB, or 35%.", rich_help_panel=WEIGHT_ONLY),
]
MaxPerplexityRiseOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--max-perplexity-rise", metavar="2%", help="Mixed bits, for language models.", rich_help_panel=WEIGHT_ONLY
    ),
]
BlockSizeOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--block-size", metavar="16..256", help="Inputs that share a scale (32).", rich_help_panel=WEIGHT_ONLY
    ),
]
WeightMethodOption: TypeAlias = Annotated[
    str,
    typer.Option("--weight-method", metavar="NAME", help="Such as gptq, awq or gptaq.", rich_help_panel=WEIGHT_ONLY),
]
AccuracyLevelOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--accuracy-level",
        metavar="|".join(_LEVELS),
        help="Float (0) or 8-bit (4) products.",
        rich_help_panel=WEIGHT_ONLY,
    ),
]
FormatOption: TypeAlias = Annotated[
    WeightFormat,
    typer.Option("--format", help="MatMulNBits or QDQ.", rich_help_panel=WEIGHT_ONLY),
]


def weight_only_scheme(
    target: Scheme,
    *,
    bits: int | None,
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
    from qtool.weights.blocks.grid import BlockGrid

    if not backend_named(target.backend).runs_weight_only:
        raise UsageError(
            f"--scheme weights is for onnxruntime's CPU provider, not for {target.machine}",
            fix="use --scheme static, or the target of a CPU",
        )
    bits = _DEFAULT_BITS if bits is None else bits
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


def bits_goal(
    bits: int | None,
    min_sqnr: float | None,
    max_size: str | None,
    max_perplexity_rise: str | None,
    model: Path,
    *,
    has_data: bool,
) -> BitsGoal | None:
    """Returns what the bits of each weight are to be chosen for; None where the options give all the same.

    Args:
        bits: the option ``--bits``.
        min_sqnr: the option ``--min-sqnr``, in dB.
        max_size: the option ``--max-size``: megabytes with ``MB``, or a share of the model's file.
        max_perplexity_rise: the option ``--max-perplexity-rise``, a share.
        model: the model's file or folder.
        has_data: whether there is calibration data.

    Raises:
        UsageError: the options exclude each other, or a value makes no sense.
    """
    from qtool.metrics.size import model_bytes
    from qtool.workflows.quantize.weight_only_request import BitsGoal

    given = {
        "--min-sqnr": min_sqnr,
        "--max-size": max_size,
        "--max-perplexity-rise": max_perplexity_rise,
        "--bits": bits,
    }
    named = [option for option, value in given.items() if value is not None]
    if named in ([], ["--bits"]):
        return None
    if len(named) > 1:
        raise UsageError(f"{named[0]} and {named[1]} exclude each other", fix="give one of them")
    if not has_data:
        raise UsageError(f"{named[0]} needs calibration data", fix="add --calib-data")
    if max_perplexity_rise is not None:
        return BitsGoal(max_perplexity_rise=share_of("--max-perplexity-rise", max_perplexity_rise, example="2%"))
    if max_size is None:
        if min_sqnr is None or not math.isfinite(min_sqnr):
            problem = f"--min-sqnr must be a finite number of decibels, not {min_sqnr}"
            raise UsageError(problem, fix="pass one such as 20")
        return BitsGoal(min_sqnr_db=min_sqnr)
    text = max_size.strip().upper()
    if not text.endswith("MB"):
        return BitsGoal(max_bytes=share_of("--max-size", max_size, example="35%") * model_bytes(model))
    try:
        size = float(text.removesuffix("MB"))
    except ValueError:
        size = 0.0
    if not (math.isfinite(size) and size > 0.0):
        raise UsageError(f"--max-size {max_size} is no size", fix="pass one such as 90MB or 35%")
    return BitsGoal(max_bytes=size * _MEGABYTE)


def block_method(given: str, *, has_data: bool) -> BlockMethod | None:
    """Returns the method that the option names; None for what fits best.

    Raises:
        UsageError: there is no such method, or it needs data.
    """
    if given not in _METHODS:
        raise UsageError(f"there is no weight method '{given}'", fix=f"use one of {', '.join(_METHODS)}")
    if given not in (AUTO, BlockMethod.RTN, BlockMethod.MSE) and not has_data:
        raise UsageError(f"--weight-method {given} needs calibration data", fix="add --calib-data, or use mse")
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
