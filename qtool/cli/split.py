"""``qtool split``: one model as several files that run one after the other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import COMPARISON, OUTPUT, PARTS
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
            help="End a part at these tensors; repeatable.",
            rich_help_panel=PARTS,
        ),
    ] = None,
    at_integer_borders: Annotated[
        bool,
        typer.Option(
            "--at-integer-borders", help="End a part wherever integers and floats meet.", rich_help_panel=PARTS
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Write the parts here.", rich_help_panel=OUTPUT),
    ] = None,
    data: EvalDataOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="SHARE",
            min=0.0,
            help="Largest difference of outputs, relative to the largest value.",
            rich_help_panel=COMPARISON,
        ),
    ] = 1e-6,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Splits a graph into files that run one after the other.

    Their outputs are compared with those of the whole.
    """
    from qtool.llm.text_for_model import text_options
    from qtool.workflows.optimize.split import SplitRequest
    from qtool.workflows.optimize.split import split as run
    from qtool.workflows.quantize.data_request import DataRequest

    console = Console(json=json, quiet=quiet, debug=debug)
    if output is None:
        raise UsageError("no output folder is given", fix="name one: -o FOLDER")
    if bool(at) == at_integer_borders:
        raise UsageError(
            "neither --at nor --at-integer-borders is given"
            if not at
            else "--at and --at-integer-borders exclude each other",
            fix="give one of them: --at TENSOR, or --at-integer-borders",
        )
    samples = None
    if data is not None:
        text = text_options((model,), None, None)
        samples = DataRequest(source=data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text)
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
        "bit-identical"
        if report.difference == 0
        else f"equal up to rounding, {report.difference:.1e} of the largest value: a cut prevents fusions"
    )
    console.say(f"outputs are {outcome} ({report.samples})")
