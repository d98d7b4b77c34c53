"""What tables of a report are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

NONE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under columns.

    Attributes:
        title: what it shows.
        columns: the headings.
        rows: one cell a column each.
        caption: what a reader has to know to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


def number(value: float | None, form: str, unit: str = "") -> str:
    """Returns a number with its unit, or words for what is none: infinite values are those of signal over noise."""
    if value is None:
        return NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "identical" if value > 0 else "all noise"
    return f"{value:{form}}{unit}"
