"""``qtool diff``: what changed between two models."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import COMPARISON
from qtool.cli.options.shared import DebugOption, JsonOption, ModelArgument, QuietOption

if TYPE_CHECKING:
    from qtool.workflows.diagnose.diff import Change

_TITLES = {
    "interface": "Inputs and outputs",
    "operators": "Nodes by operator",
    "nodes": "Nodes",
    "schemes": "Integers",
    "scales": "Ranges of integers",
    "weights": "Stored tensors",
    "other": "Other",
}
# Everything else is a matter of yes or no.
_MEASURED = ("scales", "weights")


def diff(
    model: ModelArgument,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="The model to compare it with.")],
    most: Annotated[
        int,
        typer.Option("--most", metavar="N", min=1, help="Changes of each kind to show.", rich_help_panel=COMPARISON),
    ] = 20,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Shows what changed between two ONNX models.

    The largest changes come first. Exits with 1 if there are any.
    """
    from qtool.workflows.diagnose.diff import diff as run

    console = Console(json=json, quiet=quiet, debug=debug)
    report = run(model, other, console.progress())
    if json:
        console.json(
            {
                "schema": "qtool.diff/1",
                "first": str(report.first),
                "second": str(report.second),
                "equal": report.equal,
                "changes": [asdict(change) for change in report.changes],
            }
        )
    elif report.equal:
        console.say("no difference")
    else:
        for kind, title in _TITLES.items():
            changes = [change for change in report.changes if change.kind == kind]
            if changes:
                rows = [
                    (
                        change.name,
                        change.before if change.before is not None else "none",
                        change.after if change.after is not None else "none",
                        *((_size(change),) if kind in _MEASURED else ()),
                    )
                    for change in changes[:most]
                ]
                columns = ("name", model.name, other.name, *(("change",) if kind in _MEASURED else ()))
                console.table(title, columns, rows, _caption(len(changes), most))
    if not report.equal:
        raise typer.Exit(1)


def _size(change: Change) -> str:
    size = change.size
    if change.before is None or change.after is None:
        return "in one only"
    if not math.isfinite(size):
        return "from zero"
    return f"{size:.3%}" if size >= 1e-5 else "under 0.001 %"


def _caption(count: int, most: int) -> str | None:
    return f"the largest {most} of {count}; --json has all of them" if count > most else None
