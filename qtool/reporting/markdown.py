"""The report in GitHub-flavoured Markdown, for a pull request or a job summary."""

from __future__ import annotations

from qtool.reporting.model import Report
from qtool.reporting.table import tables
from qtool.reporting.table_form import Table


def to_markdown(report: Report) -> str:
    """Writes the report's tables as Markdown, with what they were measured on below; ends with a line break."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = report.machine
    parts = [_table(table) for table in tables(report)]
    parts.append(_escaped(f"{versions}; {machine.system}, {machine.processor}, {machine.cores} cores"))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    # The first column names things, all others hold numbers.
    rule = ["---" if place == 0 else "---:" for place in range(len(table.columns))]
    lines = [_row([_escaped(cell) for cell in table.columns]), _row(rule)]
    lines += [_row([_escaped(cell) for cell in row]) for row in table.rows]
    parts = [f"### {_escaped(table.title)}", "\n".join(lines)]
    if table.caption:
        parts.append(_escaped(table.caption))
    return "\n\n".join(parts)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Keeps names from being read as markup: a pipe ends a cell, stars and underscores set type, < opens a tag."""
    for mark in "\\`*_|<[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
