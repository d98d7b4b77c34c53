"""Where a report goes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.cli.console import Console
from qtool.errors import OutputError, UsageError

if TYPE_CHECKING:
    from qtool.reporting.model import Report

_STDOUT = Path("-")
_STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Destinations:
    """Everything that a report is to be written to.

    Attributes:
        files: each file with the suffix of its form.
        markdown_on_stdout: whether stdout carries the report as Markdown, alone.
        json: whether it carries it as JSON, alone.
        step_summary: the file that GitHub shows as the summary of a job's step; None where it was not asked for.
        changes: whether the terminal shows the classes and samples that change most; all other forms do.
    """

    files: tuple[tuple[Path, str], ...]
    markdown_on_stdout: bool
    json: bool
    step_summary: Path | None
    changes: bool

    @property
    def has_page(self) -> bool:
        """Whether an HTML page is among them."""
        return any(form == ".html" for _, form in self.files)


def destinations(
    *,
    output: Path | None,
    markdown: Path | None,
    html: Path | None,
    junit: Path | None,
    step_summary: bool,
    changes: bool,
    json: bool,
    force: bool,
) -> Destinations:
    """Checks where the report is to go before anything runs.

    Raises:
        UsageError: a name does not say what to write, two results go to one place, or there is no step summary.
        OutputError: a file exists and ``force`` is off, or its folder is missing.
    """
    from qtool.atomic import check_output

    on_stdout = markdown == _STDOUT
    if json and on_stdout:
        raise UsageError("--json and --markdown - exclude each other", fix="choose one, and -o FILE for the other")
    files = [(path, form) for path, form in ((html, ".html"), (junit, ".xml")) if path is not None]
    if markdown is not None and not on_stdout:
        files.append((markdown, ".md"))
    if output is not None:
        files.append((output, _suffix(output)))
    names = [path.resolve() for path, _ in files]
    if len(set(names)) < len(names):
        raise UsageError("two formats of the report have the same file name", fix="give each its own")
    for path, _ in files:
        check_output(path, force=force)
    return Destinations(
        files=tuple(files),
        markdown_on_stdout=on_stdout,
        json=json,
        step_summary=_step_summary() if step_summary else None,
        changes=changes,
    )


def deliver(report: Report, where: Destinations, console: Console) -> None:
    """Writes ``report`` to every place, and prints it.

    Raises:
        OutputError: a file cannot be written.
    """
    from qtool.reporting.json import to_json
    from qtool.reporting.markdown import to_markdown
    from qtool.reporting.table import tables
    from qtool.reporting.writers import write_report

    for path, form in where.files:
        write_report(report, path, form)
    if where.step_summary is not None:
        # Other steps have written there: it is added to.
        try:
            with where.step_summary.open("a", encoding="utf-8") as file:
                file.write(to_markdown(report))
        except OSError as error:
            raise OutputError(
                f"cannot write to {where.step_summary}: {error.strerror or error}", fix=f"correct {_STEP_SUMMARY}"
            ) from error
    if where.json:
        console.json(to_json(report))
    elif where.markdown_on_stdout:
        console.document(to_markdown(report))
    else:
        for table in tables(report, changes=where.changes):
            console.table(table.title, table.columns, table.rows, table.caption)


def _suffix(output: Path) -> str:
    from qtool.reporting.writers import WRITERS

    if output.suffix not in WRITERS:
        raise UsageError(
            f"{output} has no suffix of a report format",
            fix=f"end it in {', '.join(WRITERS)}: -o report.json",
        )
    return output.suffix


def _step_summary() -> Path:
    path = os.environ.get(_STEP_SUMMARY)
    if not path:
        raise UsageError(
            f"--step-summary is for GitHub's runners, and {_STEP_SUMMARY} is not set", fix="use --markdown FILE here"
        )
    return Path(path)
