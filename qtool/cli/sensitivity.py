"""``qtool sensitivity``: which layers suffer from being quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.cluster import ClusterOption, chosen_workers
from qtool.cli.options.groups import DATA, OUTPUT, WEIGHT_ONLY
from qtool.cli.options.model import model_path, model_source, trust
from qtool.cli.options.ranges import AUTO, MethodOption, chosen_range_method
from qtool.cli.options.scheme import ExcludeOption, IncludeOption
from qtool.cli.options.shared import (
    AllowGlobalOption,
    BatchSizeOption,
    CalibDataListOption,
    DebugOption,
    FactoryKwargsOption,
    FactoryOption,
    ForceOption,
    InputShapeOption,
    JsonOption,
    LimitOption,
    OptionalModelArgument,
    PreprocessOption,
    QuietOption,
    TargetOption,
    ThreadsOption,
    TrustPickleOption,
)
from qtool.cli.options.text import TokenizerOption, TokensOption, check_text
from qtool.cli.options.weight_only import BlockSizeOption, weight_only_scheme
from qtool.errors import UsageError
from qtool.weights.blocks.choices import WeightFormat


def sensitivity(
    model: OptionalModelArgument = None,
    calib_data: CalibDataListOption = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="Number of samples, about.", rich_help_panel=DATA)
    ] = 8,
    worst: Annotated[
        int, typer.Option("--worst", metavar="N", min=1, help="Layers to show.", rich_help_panel=OUTPUT)
    ] = 20,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw them, as a .png.", rich_help_panel=OUTPUT),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write all layers, as .json or .csv.", rich_help_panel=OUTPUT
        ),
    ] = None,
    bits: Annotated[
        bool,
        typer.Option("--bits", help="Weights alone: 2, 4 and 8 bits, and sizes.", rich_help_panel=WEIGHT_ONLY),
    ] = False,
    block_size: BlockSizeOption = None,
    target: TargetOption = None,
    method: MethodOption = "minmax",
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    tokenizer: TokenizerOption = None,
    tokens: TokensOption = None,
    factory: FactoryOption = None,
    model_kwargs: FactoryKwargsOption = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    threads: ThreadsOption = 0,
    cluster: ClusterOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Ranks layers by the noise that quantizing each one adds.

    One layer at a time is quantized (fake quantization), and the outputs are compared with the float model's. With
    --bits, one weight at a time has 2, 4 or 8 bits, and the curve of file size over accuracy for mixed bits is shown.
    """
    from qtool.backends.this_machine import target_named
    from qtool.cli.output.bits_sensitivity import run_bits
    from qtool.llm.text_for_model import graph_of, text_options
    from qtool.selection import NodeSelection
    from qtool.workflows.quantize.data_request import data_request
    from qtool.workflows.tune.sensitivity import SensitivityRequest, in_decibels
    from qtool.workflows.tune.sensitivity import sensitivity as run
    from qtool.workflows.tune.weight_only.bits_sensitivity import BitsSensitivityRequest

    console = Console(json=json, quiet=quiet, debug=debug)
    path = graph_of(model_path(model))
    if not calib_data:
        raise UsageError("no calibration data is given", fix="pass --calib-data DATA, or set calib_data in qtool.toml")
    check_text(calib_data, tokenizer, tokens)
    text = text_options((path,), tokenizer, tokens)
    machine = target_named(target)
    console.progress().note(machine.description)
    if bits:
        if cluster is not None:
            raise UsageError("--cluster has no effect with --bits", fix="drop one of them")
        if method != "minmax":
            raise UsageError("--method has no effect with --bits", fix="drop one of them")
        run_bits(
            console,
            BitsSensitivityRequest(
                source=model_source(path, factory, model_kwargs, input_shape, trust(trust_pickle, allow_global)),
                data=data_request(calib_data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text),
                scheme=weight_only_scheme(
                    machine.scheme,
                    bits=None,
                    block_size=block_size,
                    per_channel=None,
                    symmetric=None,
                    form=WeightFormat.NBITS,
                ),
                selection=NodeSelection(include=tuple(include or ()), exclude=tuple(exclude or ())),
                samples=samples,
                output=output,
                plot=plot,
                threads=threads,
                force=force,
            ),
            worst=worst,
            json=json,
        )
        return
    if block_size is not None:
        raise UsageError("--block-size has no effect without --bits", fix="add --bits, or drop it")
    request = SensitivityRequest(
        source=model_source(path, factory, model_kwargs, input_shape, trust(trust_pickle, allow_global)),
        data=data_request(calib_data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text),
        scheme=machine.scheme,
        method=chosen_range_method(method, {}),
        chosen_ranges=method == AUTO,
        selection=NodeSelection(include=tuple(include or ()), exclude=tuple(exclude or ())),
        samples=samples,
        output=output,
        plot=plot,
        worst=worst,
        threads=threads,
        force=force,
    )
    with chosen_workers(cluster, console.progress(), threads=threads) as workers:
        report = run(request, console.progress(), workers)
    if json:
        console.json(report.as_json())
        return
    console.table(
        "Noise at the outputs, one layer at a time on integers",
        ("layer", "operator", "SQNR alone", "share of noise", "nodes"),
        [
            (
                layer.group.layer,
                layer.group.operator,
                in_decibels(layer.sqnr_db),
                f"{layer.share:.1%}",
                len(layer.group.nodes),
            )
            for layer in report.layers[:worst]
        ],
        f"the worst {min(worst, len(report.layers))} of {len(report.layers)} layers, with the operators behind them; "
        f"{in_decibels(report.sqnr_db)} with all of them on integers; {report.samples} samples",
    )
    for file in (output, plot):
        if file is not None:
            console.say(f"wrote {file}")
