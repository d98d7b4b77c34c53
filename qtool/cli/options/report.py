"""The options that only ``qtool report`` has. Nothing heavy may be imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from qtool.backends.runtimes import DEFAULT_RUNTIME, RUNTIMES, runtime_named
from qtool.cli.options.groups import DATA, GATES, MEASUREMENTS, OUTPUT
from qtool.errors import UsageError

FailIfOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        help="Exit 1 if this holds: 'top1_drop > 0.5', 'speedup < 1.3'; repeatable.",
        rich_help_panel=GATES,
    ),
]
ReportDataOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "--eval-data",
        metavar="[NAME=]DATA",
        help="Evaluation data: .npz, .txt, folder or pkg.module:function; repeatable.",
        rich_help_panel=DATA,
    ),
]
MetricOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="Judge by top1, top5, cosine, edit, wer, detection, perplexity or pkg.module:function.",
        rich_help_panel=MEASUREMENTS,
    ),
]
BaselineOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="FILE", help="Exit 1 if worse than this earlier report (.json).", rich_help_panel=GATES
    ),
]
RuntimeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="NAME,NAME",
        help=f"What runs the models, side by side: {', '.join(RUNTIMES)}. Default: {DEFAULT_RUNTIME}.",
        rich_help_panel=MEASUREMENTS,
    ),
]
ColdStartOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--cold-start", help="Time the first result in 8 fresh processes per model.", rich_help_panel=MEASUREMENTS
    ),
]
ProfileOption: TypeAlias = Annotated[
    bool,
    typer.Option("--profile", help="Profile the time of each operator.", rich_help_panel=MEASUREMENTS),
]
BatchSizesOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--batch-sizes", metavar="N,N", help="Also time these batch sizes.", rich_help_panel=MEASUREMENTS),
]
ThreadCountsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--thread-counts", metavar="N,N", help="Also time these numbers of threads.", rich_help_panel=MEASUREMENTS
    ),
]
ChangesOption: TypeAlias = Annotated[
    bool, typer.Option("--changes", help="Show the classes and samples that change most.", rich_help_panel=MEASUREMENTS)
]
LayersOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--layers", help="Compare intermediate tensors too, on up to 16 samples.", rich_help_panel=MEASUREMENTS
    ),
]
HistogramOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--histogram",
        metavar="PATTERN",
        help="Tensors to draw in HTML; repeatable. Default: the worst ones.",
        rich_help_panel=OUTPUT,
    ),
]
ReportFileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the report: .json, .md, .html or .xml (JUnit).",
        rich_help_panel=OUTPUT,
    ),
]
MarkdownOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--markdown", metavar="FILE", help="Write it as Markdown; - prints it.", rich_help_panel=OUTPUT),
]
HtmlOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write it as one page with plots.", rich_help_panel=OUTPUT),
]
JunitOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--junit", metavar="FILE", help="Write the gates as JUnit XML.", rich_help_panel=OUTPUT),
]
StepSummaryOption: TypeAlias = Annotated[
    bool, typer.Option("--step-summary", help="Add it to the summary of a GitHub Actions step.", rich_help_panel=OUTPUT)
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
        raise UsageError(f"{option} {text} is not a list of whole numbers above 0", fix=f"write {option} 1,8")
    return tuple(dict.fromkeys(map(int, parts)))


def runtimes(text: str | None) -> tuple[str, ...]:
    """Returns the runtimes that were named, each once; the default where none was.

    Raises:
        UsageError: there is none of that name, or it is not installed.
    """
    names = tuple(dict.fromkeys(part.strip() for part in (text or DEFAULT_RUNTIME).split(",") if part.strip()))
    if not names:
        raise UsageError("--runtime names nothing", fix=f"name one or several of {', '.join(RUNTIMES)}")
    for name in names:
        runtime_named(name).load()
    return names
