"""Every form in which a report is written to a file: the name of a file says which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qtool.atomic import staged
from qtool.json_values import json_text
from qtool.reporting.html import to_html
from qtool.reporting.json import to_json
from qtool.reporting.junit import to_junit
from qtool.reporting.markdown import to_markdown
from qtool.reporting.model import Report


def to_json_text(report: Report) -> str:
    """Writes the report as a JSON document; ends with a line break."""
    return json_text(to_json(report))


WRITERS: Mapping[str, Callable[[Report], str]] = {
    ".json": to_json_text,
    ".md": to_markdown,
    ".html": to_html,
    ".xml": to_junit,
}


def write_report(report: Report, path: Path, form: str) -> None:
    """Writes ``report`` to ``path``, whole or not at all, in the form of the suffix ``form``.

    Raises:
        OutputError: the file cannot be written.
    """
    with staged(path) as part:
        part.write_text(WRITERS[form](report), encoding="utf-8")
