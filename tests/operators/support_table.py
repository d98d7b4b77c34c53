"""Writes the documentation's table of operators from measurements, and reads it back.

``make support-table`` runs this file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.operators.all_kinds import KINDS
from tests.operators.exporter_registry import remembered_registry
from tests.operators.kinds import Kind, Scheme
from tests.operators.measuring import Quantized, Subject, quantized_every_way

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "operators.md"
BEGIN, END = "<!-- operators: written by make support-table -->", "<!-- operators end -->"
_NOTHING = "-"
_CELL = re.compile(r"(\d+)/(\d+), (\d+) dB, ([\d.]+) %")


@dataclass(frozen=True, slots=True)
class Cell:
    """What the table says of one way of quantizing.

    Attributes:
        integer: nodes that run on integers.
        total: nodes that could.
        db: signal over noise, in whole dB.
        percent: the largest error, in percent of the range of the output.
    """

    integer: int
    total: int
    db: int
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the table says of one kind.

    Attributes:
        floats: the operators that stay float with one scale a channel, as text.
        cells: by scheme; None where nothing can be quantized so.
    """

    floats: str
    cells: Mapping[Scheme, Cell | None]


def row_of(ways: Mapping[Scheme, Quantized | None]) -> Row:
    """Returns the row that measurements make."""
    first = ways[Scheme.CHANNEL]
    if first is None:
        raise AssertionError("every kind can be quantized statically")
    floats = ", ".join(name if count == 1 else f"{count} {name}" for name, count in sorted(first.floats.items()))
    return Row(floats=floats or _NOTHING, cells={scheme: _cell_of(way) for scheme, way in ways.items()})


def _cell_of(way: Quantized | None) -> Cell | None:
    if way is None:
        return None
    return Cell(way.coverage.integer, way.coverage.total, round(way.error.db), round(way.error.largest * 100, 1))


def table_of(rows: Mapping[str, Row]) -> str:
    """Returns the table as Markdown, with the versions that it holds for."""
    titles = ["operator", *Scheme, "stays float"]
    lines = [f"Measured with {versions()}.", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in rows.items():
        cells = [_text_of(cell) for cell in row.cells.values()]
        lines.append(f"| {' | '.join([name, *cells, row.floats])} |")
    return "\n".join(lines) + "\n"


def _text_of(cell: Cell | None) -> str:
    return _NOTHING if cell is None else f"{cell.integer}/{cell.total}, {cell.db} dB, {cell.percent} %"


def versions() -> str:
    """Returns what a table depends on beside qtool."""
    return f"onnxruntime {version('onnxruntime')} and torch {version('torch').partition('+')[0]}"


def table_in(text: str) -> str:
    """Returns the part of the page between the marks."""
    return text.split(f"{BEGIN}\n", 1)[1].split(END, 1)[0]


def rows_in(table: str) -> dict[str, Row]:
    """Reads a table back."""
    rows = {}
    for line in table.splitlines():
        if not line.startswith("| ") or line.startswith("| operator "):
            continue
        name, *cells, floats = (part.strip() for part in line.strip("|").split("|"))
        rows[name] = Row(floats=floats, cells=dict(zip(Scheme, map(_cell_in, cells), strict=True)))
    return rows


def _cell_in(text: str) -> Cell | None:
    if text == _NOTHING:
        return None
    found = _CELL.fullmatch(text)
    assert found is not None, text
    return Cell(int(found[1]), int(found[2]), int(found[3]), float(found[4]))


def measured_row(kind: Kind) -> Row:
    """Measures one kind."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return row_of(quantized_every_way(Subject(kind, Path(folder))))


def main() -> None:
    """Measures every kind and writes the table into the page."""
    with remembered_registry():
        rows = {kind.name: measured_row(kind) for kind in KINDS}
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(f"{BEGIN}\n", 1)
    PAGE.write_text(f"{before}{BEGIN}\n{table_of(rows)}{END}{rest.split(END, 1)[1]}", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
