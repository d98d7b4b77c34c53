"""``qtool merge-lora``: adapters become part of the weights that they were trained on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import MERGING, OUTPUT
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
from qtool.lora.merge.combining import Combination, Method
from qtool.qdq.scale_policy import ScalePolicy

if TYPE_CHECKING:
    from qtool.workflows.lora.request import AdapterSource


def merge_lora(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="Weights (.safetensors, .pth, an index, a folder), or an ONNX graph.",
        ),
    ],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER...",
            help="Folder of PEFT, .safetensors, .pt or .gguf; ADAPTER=0.7 scales it.",
        ),
    ],
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    base_weights: Annotated[
        Path | None,
        typer.Option(
            "--base-weights",
            metavar="FILE",
            help="Weights that the ONNX graph was exported from.",
            rich_help_panel=MERGING,
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option("--scale", metavar="F", help="Factor for all adapters.", rich_help_panel=MERGING)
    ] = 1.0,
    unmerge: Annotated[
        bool, typer.Option("--unmerge", help="Subtract merged adapters.", rich_help_panel=MERGING)
    ] = False,
    as_adapter: Annotated[
        bool,
        typer.Option(
            "--as-adapter",
            help="Give the ONNX graph adapter inputs; write .onnx_adapter files.",
            rich_help_panel=MERGING,
        ),
    ] = False,
    combine: Annotated[
        Method | None,
        typer.Option("--combine", help="Combine by TIES, DARE or SVD. Default: the sum.", rich_help_panel=MERGING),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            "--density", metavar="F", help="ties, dare: share of entries kept. Default: 0.5.", rich_help_panel=MERGING
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", metavar="N", min=1, help="svd: rank kept. Default: the largest.", rich_help_panel=MERGING
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, help="dare: random seed. Default: 0.", rich_help_panel=MERGING),
    ] = None,
    scales: Annotated[
        ScalePolicy | None,
        typer.Option(
            "--scales",
            help="Scales of a quantized ONNX graph. Default: grow.",
            rich_help_panel=MERGING,
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
            help="Merge only this part of a pipeline, such as unet; repeatable.",
            rich_help_panel=MERGING,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="PATTERN", help="Change only these modules; repeatable.", rich_help_panel=MERGING
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="PATTERN", help="Leave these modules out; repeatable.", rich_help_panel=MERGING
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change; write nothing.", rich_help_panel=OUTPUT)
    ] = False,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Merges adapters (LoRA, DoRA, LoHa, IA3, ...) into weights.

    In float64, rounded once; the weights may be in torch files, safetensors or an ONNX graph, also a quantized one.
    """
    from qtool.llm.text_for_model import text_options
    from qtool.workflows.lora.merge_weights import merge_lora as run
    from qtool.workflows.lora.request import MergeRequest
    from qtool.workflows.quantize.data_request import data_request

    console = Console(json=json, quiet=quiet, debug=debug)
    if not math.isfinite(scale):
        raise UsageError(f"--scale must be a finite number, not {scale}", fix="give a number such as 0.5")
    if as_adapter and (combine is not None or unmerge or scales is not None):
        raise UsageError(
            "--combine, --unmerge and --scales have no effect with --as-adapter",
            fix="drop --combine, --unmerge and --scales",
        )
    if as_adapter and calib_data:
        raise UsageError("--calib-data has no effect with --as-adapter", fix="drop --calib-data")
    _check_belongs_to_data(bool(calib_data), preprocess, batch_size, limit)
    data = None
    if calib_data:
        text = text_options((base,), None, None)
        data = data_request(calib_data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text)
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
            scales=scales,
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
            raise UsageError(f"{option} has no effect without --calib-data", fix=f"add --calib-data, or drop {option}")


def _combination(
    method: Method | None, density: float | None, rank: int | None, seed: int | None, *, unmerge: bool
) -> Combination | None:
    belongs = {"--density": density is None or method in ("ties", "dare")}
    belongs |= {"--rank": rank is None or method == "svd", "--seed": seed is None or method == "dare"}
    for option, fits in belongs.items():
        if not fits:
            raise UsageError(
                f"{option} has no effect {'without --combine' if method is None else f'with --combine {method}'}",
                fix=f"drop {option}",
            )
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"--density must be above 0 and at most 1, not {density}", fix="give a share such as 0.5")
    if method is None:
        return None
    if unmerge:
        raise UsageError("--unmerge and --combine exclude each other", fix="give one of them")
    return Combination(method=method, density=density or 0.5, rank=rank, seed=seed or 0)


def _adapter(text: str) -> AdapterSource:
    from qtool.workflows.lora.request import AdapterSource

    name, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return AdapterSource(path=Path(text))
    try:
        weight = float(number)
    except ValueError as error:
        raise UsageError(f"'{number}' in {text} is not a number", fix=f"give a weight such as {name}=0.5") from error
    if not math.isfinite(weight):
        raise UsageError(f"'{number}' in {text} is not a number", fix=f"give a weight such as {name}=0.5")
    return AdapterSource(path=Path(name), weight=weight)
