"""``qtool merge-lora``: adapters become part of the weights that they were trained on."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.model import trust
from qtool.cli.options.shared import (
    AllowGlobalOption,
    BatchSizeOption,
    CalibDataListOption,
    DebugOption,
    ForceOption,
    JsonOption,
    LimitOption,
    OutputDirOption,
    OutputOption,
    PreprocessOption,
    QuietOption,
    TrustPickleOption,
)
from qtool.cli.output.merge import merge_as_json, show_merge
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.lora.merge.combining import Combination
    from qtool.workflows.lora.request import AdapterSource


class CombineMethod(StrEnum):
    """Is what ``--combine`` takes."""

    TIES = "ties"
    DARE = "dare"
    SVD = "svd"


class Scales(StrEnum):
    """Is what ``--scales`` takes."""

    GROW = "grow"
    KEEP = "keep"
    RECOMPUTE = "recompute"


def merge_lora(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="Weights (.safetensors, .pth, an index of several files, or the folder of a model), or an ONNX graph.",
            show_default=False,
        ),
    ],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER...",
            help="Folders that PEFT saved, or .safetensors, .pt or .gguf files; ADAPTER=0.7 merges that much of it.",
            show_default=False,
        ),
    ],
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    base_weights: Annotated[
        Path | None,
        typer.Option(
            "--base-weights",
            metavar="FILE",
            help="The weights that an ONNX graph was exported from, to find them in it by their values.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Factor for the changes of all adapters.")] = 1.0,
    unmerge: Annotated[bool, typer.Option("--unmerge", help="Subtract adapters that were merged.")] = False,
    as_adapter: Annotated[
        bool,
        typer.Option(
            "--as-adapter",
            help="Of an ONNX graph: give it inputs for adapters, and write a file of each that onnxruntime loads.",
        ),
    ] = False,
    combine: Annotated[
        CombineMethod | None,
        typer.Option("--combine", help="Combine the changes of adapters in another way than their sum."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", help="Of ties and dare: the share of each change that is kept. Default: 0.5."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="Of svd: the rank that is kept. Default: the largest of the adapters."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of dare: what it draws from. Default: 0.")] = None,
    scales: Annotated[
        Scales | None,
        typer.Option(
            "--scales",
            help="Of a quantized ONNX graph: scales grow where values outgrow them, stay as they are, or are "
            "found anew. Default: grow.",
        ),
    ] = None,
    calib_data: CalibDataListOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="NAME",
            help="Of an adapter for a whole pipeline: merge this part of it, such as unet or text_encoder; repeatable.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="PATTERN", help="Change these modules and no others; repeatable.", show_default=False
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="PATTERN", help="Do not change these modules; repeatable.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change and by how much; write nothing.")
    ] = False,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Merges adapters (LoRA and its kin) into weights, with one rounding at the end."""
    from qtool.qdq.stored_integers import ScalePolicy
    from qtool.workflows.lora.merge_weights import merge_lora as run
    from qtool.workflows.lora.request import MergeRequest
    from qtool.workflows.quantize.data_request import data_request

    console = Console(json=json, quiet=quiet, debug=debug)
    if not math.isfinite(scale):
        raise UsageError(f"--scale {scale} is no number", fix="give a number, such as 0.5")
    if as_adapter and (combine is not None or unmerge or scales is not None):
        raise UsageError("--as-adapter exchanges adapters as they are", fix="drop --combine, --unmerge and --scales")
    if as_adapter and calib_data:
        raise UsageError("--calib-data sets ranges for what is merged, not for adapters to come", fix="drop it")
    _check_belongs_to_data(bool(calib_data), preprocess, batch_size, limit)
    data = data_request(calib_data, preprocess=preprocess, batch_size=batch_size, limit=limit) if calib_data else None
    report = run(
        MergeRequest(
            base=base,
            adapters=tuple(_adapter(text) for text in adapters),
            output=output,
            output_dir=output_dir,
            base_weights=base_weights,
            scale=scale,
            unmerge=unmerge,
            as_adapter=as_adapter,
            combination=_combination(combine, density, rank, seed, unmerge=unmerge),
            scales=None if scales is None else ScalePolicy(scales.value),
            data=data,
            parts=tuple(part or ()),
            only=tuple(only or ()),
            exclude=tuple(exclude or ()),
            dry_run=dry_run,
            trust=trust(trust_pickle, allow_global),
            force=force,
        ),
        console.progress(),
    )
    if json:
        console.json(merge_as_json(report))
    else:
        show_merge(console, report)


def _check_belongs_to_data(given: bool, preprocess: str | None, batch_size: int | None, limit: int | None) -> None:
    options = {"--preprocess": preprocess, "--batch-size": batch_size, "--limit": limit}
    for option, value in options.items():
        if value is not None and not given:
            raise UsageError(f"{option} says nothing without --calib-data", fix=f"add --calib-data, or drop {option}")


def _combination(
    method: CombineMethod | None, density: float | None, rank: int | None, seed: int | None, *, unmerge: bool
) -> Combination | None:
    from qtool.lora.merge.combining import Combination, Method

    belongs = {"--density": density is None or method in ("ties", "dare")}
    belongs |= {"--rank": rank is None or method == "svd", "--seed": seed is None or method == "dare"}
    for option, fits in belongs.items():
        if not fits:
            raise UsageError(
                f"{option} says nothing {'without --combine' if method is None else f'with --combine {method}'}",
                fix=f"drop {option}",
            )
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"--density {density} is no share", fix="give a number above 0, and at most 1")
    if method is None:
        return None
    if unmerge:
        raise UsageError("--unmerge and --combine exclude each other", fix="give one of them")
    return Combination(method=Method(method.value), density=density or 0.5, rank=rank, seed=seed or 0)


def _adapter(text: str) -> AdapterSource:
    from qtool.workflows.lora.request import AdapterSource

    name, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return AdapterSource(path=Path(text))
    try:
        weight = float(number)
    except ValueError as error:
        raise UsageError(f"'{number}' in {text} is no number", fix=f"give a weight such as {name}=0.5") from error
    if not math.isfinite(weight):
        raise UsageError(f"'{number}' in {text} is no number", fix=f"give a weight such as {name}=0.5")
    return AdapterSource(path=Path(name), weight=weight)
