"""``qtool split``: one model as several files that run one after the other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.shared import (
    BatchSizeOption,
    DebugOption,
    EvalDataOption,
    ForceOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    PreprocessOption,
    QuietOption,
)
from qtool.errors import UsageError


def split(
    model: ModelArgument,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="TENSOR[,TENSOR]",
            help="End a part where these tensors are made; repeat for more parts.",
            show_default=False,
        ),
    ] = None,
    at_integer_borders: Annotated[
        bool, typer.Option("--at-integer-borders", help="End a part wherever integers and floats meet.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where the parts go.", show_default=False)
    ] = None,
    data: EvalDataOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0.0,
            help="How far outputs may be apart as onnxruntime fuses nodes, of the largest value.",
        ),
    ] = 1e-6,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Splits a graph into files that run one after the other, and compares them with the whole."""
    from qtool.workflows.optimize.split import SplitRequest
    from qtool.workflows.optimize.split import split as run
    from qtool.workflows.quantize.data_request import DataRequest

    console = Console(json=json, quiet=quiet, debug=debug)
    if output is None:
        raise UsageError("there is no place for the parts", fix="name a folder: -o FOLDER")
    if bool(at) == at_integer_borders:
        raise UsageError(
            "nothing says where to split" if not at else "--at and --at-integer-borders each say where to split",
            fix="give one of them: --at TENSOR, or --at-integer-borders",
        )
    samples = None
    if data is not None:
        samples = DataRequest(source=data, preprocess=preprocess, batch_size=batch_size, limit=limit)
    report = run(
        SplitRequest(
            model=model,
            folder=output,
            cuts=tuple(tuple(name.strip() for name in cut.split(",") if name.strip()) for cut in at or ()),
            at_borders=at_integer_borders,
            data=samples,
            tolerance=tolerance,
            force=force,
        ),
        console.progress(),
    )
    if json:
        parts = [{**asdict(part), "nbytes": nbytes} for part, nbytes in zip(report.parts, report.nbytes, strict=True)]
        console.json(
            {
                "schema": "qtool.split-report/1",
                "manifest": str(report.manifest),
                "parts": parts,
                "difference": report.difference,
                "bit_equal": report.difference == 0,
                "samples": report.samples,
            }
        )
        return
    console.table(
        str(report.manifest),
        ("part", *(("runs on",) if at_integer_borders else ()), "nodes", "bytes", "takes", "gives"),
        [
            (
                part.file,
                *((part.kind,) if at_integer_borders else ()),
                part.nodes,
                f"{nbytes:,}",
                ", ".join(part.inputs),
                ", ".join(part.outputs),
            )
            for part, nbytes in zip(report.parts, report.nbytes, strict=True)
        ],
    )
    outcome = (
        "the same bit by bit"
        if report.difference == 0
        else f"the same but for rounding, {report.difference:.1e} of the largest value: a cut keeps nodes from fusing"
    )
    console.say(f"outputs are {outcome} ({report.samples})")
