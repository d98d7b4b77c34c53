"""``qtool calibrate``: one pass over the data, one statistics file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.cluster import ClusterOption, chosen_workers
from qtool.cli.options.groups import CALIBRATION
from qtool.cli.options.model import model_path, model_source, trust
from qtool.cli.options.scheme import ActivationsSymmetricOption
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
    OutputDirOption,
    OutputOption,
    PreprocessOption,
    QuietOption,
    TargetOption,
    ThreadsOption,
    TrustPickleOption,
)
from qtool.cli.options.text import TokenizerOption, TokensOption, check_text
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.workflows.quantize.calibrate import CalibrateReport

_FOR_MERGE = frozenset({"model", "files", "merge", "output", "force", "json", "quiet", "debug", "verbose", "log_file"})


def calibrate(
    context: typer.Context,
    model: OptionalModelArgument = None,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES", help="With --merge, the statistics of all shards.")
    ] = None,
    calib_data: CalibDataListOption = None,
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    tokenizer: TokenizerOption = None,
    tokens: TokensOption = None,
    target: TargetOption = None,
    activations_symmetric: ActivationsSymmetricOption = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Count all values in the histograms, not samples; slower.", rich_help_panel=CALIBRATION
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Run on this part of the data, such as 3/8.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Join the statistics of all shards into one.", rich_help_panel=CALIBRATION),
    ] = False,
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
    """Gathers calibration statistics in one pass over the data.

    Every range method of `qtool quantize` can work from them. Several machines can share the pass: each one gathers a
    shard, and --merge joins the files, equal to the last bit to those of one pass.
    """
    console = Console(json=json, quiet=quiet, debug=debug)
    if merge:
        _show(_merged(context, model, files or [], output, console, force=force), console, json=json)
        return
    if files:
        raise UsageError(f"{files[0]} is one file too many", fix="give one model, or --merge to join statistics")
    from qtool.atomic import check_output
    from qtool.backends.this_machine import target_named
    from qtool.calib.shard import Shard
    from qtool.llm.text_for_model import graph_of, text_options
    from qtool.workflows.quantize.calibrate import CalibrateRequest
    from qtool.workflows.quantize.calibrate import calibrate as run
    from qtool.workflows.quantize.data_request import data_request
    from qtool.workflows.shards.gather_in_tasks import gather_by

    path = graph_of(model_path(model))
    if not calib_data:
        raise UsageError("no calibration data is given", fix="pass --calib-data DATA, or set calib_data in qtool.toml")
    check_text(calib_data, tokenizer, tokens)
    text = text_options((path,), tokenizer, tokens)
    machine = target_named(target)
    console.progress().note(machine.description)
    request = CalibrateRequest(
        source=model_source(path, factory, model_kwargs, input_shape, trust(trust_pickle, allow_global)),
        data=data_request(calib_data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text),
        output=output,
        output_dir=output_dir,
        scheme=machine.scheme,
        activations_symmetric=activations_symmetric,
        exact=exact,
        shard=None if shard is None else Shard.parse(shard),
        threads=threads,
        force=force,
    )
    check_output(request.destination, force=force)
    with chosen_workers(cluster, console.progress(), threads=threads) as workers:
        report = run(request, console.progress(), gathers=gather_by(workers))
    if shard is None:
        _warn_of_unreached(report, console)
    _show(report, console, json=json)


def _merged(
    context: typer.Context, model: Path | None, files: list[Path], output: Path | None, console: Console, *, force: bool
) -> CalibrateReport:
    from qtool.workflows.shards.merge_statistics import MergeRequest, merge_statistics

    given = {
        name: parameter
        for parameter in context.command.params
        if (name := parameter.name or "") and _is_typed(context, name)
    }
    for name, parameter in given.items():
        if name not in _FOR_MERGE:
            raise UsageError(f"{parameter.opts[0]} has no effect with --merge", fix="drop one of them")
    if output is None:
        raise UsageError("the joined statistics have no name", fix="pass -o, such as -o all.stats.npz")
    first = [model] if model is not None and "model" in given else []
    parts = (*first, *files)
    report = merge_statistics(MergeRequest(parts=parts, output=output, force=force), console.progress())
    _warn_of_unreached(report, console)
    return report


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _warn_of_unreached(report: CalibrateReport, console: Console) -> None:
    for name in report.unreached:
        console.warn(f"the tensor '{name}' was never reached: it has no range, and stays float")


def _show(report: CalibrateReport, console: Console, *, json: bool) -> None:
    if json:
        console.json(_as_json(report))
        return
    console.table(
        "Calibrated",
        ("tensor", "batches", "values", "smallest", "largest"),
        [
            (seen.tensor, seen.batches, f"{seen.values:,}", _number(seen.minimum), _number(seen.maximum))
            for seen in report.tensors
        ],
        f"{report.samples} samples in {report.batches} batches",
    )
    console.say(f"wrote {report.output}")


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.4g}"


def _as_json(report: CalibrateReport) -> dict[str, object]:
    return {
        "schema": "qtool.calibrate/1",
        "output": str(report.output),
        "samples": report.samples,
        "batches": report.batches,
        "unreached": list(report.unreached),
        "tensors": [
            {
                "tensor": seen.tensor,
                "batches": seen.batches,
                "values": seen.values,
                "minimum": seen.minimum,
                "maximum": seen.maximum,
                "infinite": seen.infinite,
            }
            for seen in report.tensors
        ],
    }
