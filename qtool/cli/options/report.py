"""The options that only ``qtool report`` has. Nothing heavy may be imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from qtool.errors import UsageError

FailIfOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        help="Exit with 1 if this holds, such as 'top1_drop > 0.5' or 'speedup < 1.3'; repeatable.",
        show_default=False,
    ),
]
ReportDataOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "--eval-data",
        metavar="[NAME=]DATA",
        help="Evaluation data: .npz, a folder of arrays or images, or pkg.module:function; repeatable.",
        show_default=False,
    ),
]
MetricOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="Judge the models by top1, top5, cosine, edit, wer, detection, or pkg.module:function.",
        show_default=False,
    ),
]
BaselineOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="FILE",
        help="Exit with 1 if a figure is worse than in this earlier report, a .json that -o wrote.",
        show_default=False,
    ),
]
ColdStartOption: TypeAlias = Annotated[
    bool, typer.Option("--cold-start", help="Measure the time to the first result, in 8 fresh processes a model.")
]
ProfileOption: TypeAlias = Annotated[
    bool, typer.Option("--profile", help="Show where the time goes, by operator, as onnxruntime's profiler sees it.")
]
BatchSizesOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--batch-sizes", metavar="N,N", help="Time the models at these sizes of batches too.", show_default=False
    ),
]
ThreadCountsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--thread-counts", metavar="N,N", help="Time the models with these numbers of threads too.", show_default=False
    ),
]
ChangesOption: TypeAlias = Annotated[
    bool, typer.Option("--changes", help="Show the classes and samples that change most; files have them anyway.")
]
LayersOption: TypeAlias = Annotated[
    bool, typer.Option("--layers", help="Compare the tensors inside of the models too, on up to 16 samples.")
]
HistogramOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--histogram",
        metavar="PATTERN",
        help="Quantized tensors whose values are drawn in HTML. Default: the worst ones; repeatable.",
        show_default=False,
    ),
]
ReportFileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the report there too: .json, .md, .html or .xml (JUnit).",
        show_default=False,
    ),
]
MarkdownOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--markdown", metavar="FILE", help="Write the report as Markdown; - prints it, alone.", show_default=False
    ),
]
HtmlOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write the report as one page with plots.", show_default=False),
]
JunitOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--junit", metavar="FILE", help="Write the gates as JUnit XML.", show_default=False),
]
StepSummaryOption: TypeAlias = Annotated[
    bool, typer.Option("--step-summary", help="Add the report to the summary of a GitHub Actions step.")
]


def counts(text: str | None, option: str) -> tuple[int, ...]:
    """Reads whole numbers above 0 that commas divide; nothing where the option is not given.

    Raises:
        UsageError: it is something else.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text} is no list of whole numbers above 0", fix=f"write {option} 1,8")
    return tuple(dict.fromkeys(map(int, parts)))
