"""Draws plots as SVG that stands inside of a page, whose style gives it its colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Small enough that letters of 12 units can be read on a phone, where the whole width is some 360 pixels.
_WIDTH = 400.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 14.0, 12.0, 40.0
_PLOT_HEIGHT = 230.0
_ROW = 20.0
_LABEL_CHARACTERS = 22
_LETTER = 6.6
# Fonts are of many widths: so much takes a letter of the widest usual one.
_WIDEST_LETTER = 7.6
_TICKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A mark in a plot.

    Attributes:
        label: stands beside it.
        x: where it is.
        y: where it is.
        low: left end of the bar through it.
        high: right end of it.
        is_base: whether it is what the others are compared with.
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    is_base: bool


def scatter(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
    """Draws ``points``, which are finite, with a bar from ``low`` to ``high``."""
    across = _Axis.around([end for point in points for end in (point.low, point.high)], _LEFT, _WIDTH - _RIGHT)
    up = _Axis.around([point.y for point in points], _PLOT_HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(across, up), _axis_labels(x_label, y_label, _PLOT_HEIGHT)]
    marks = [(across.at(point.x), up.at(point.y)) for point in points]
    for point, (x, y) in zip(points, marks, strict=True):
        kind = "base" if point.is_base else "mark"
        parts.append(_line(across.at(point.low), y, across.at(point.high), y, kind))
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    labels = [_shortened(point.label) for point in points]
    for point, label, place in zip(points, labels, _label_places(marks, labels), strict=True):
        parts.append(_text(place.x, place.y, label, place.anchor, full=point.label))
    return _picture(title, _PLOT_HEIGHT, parts)


def bars(rows: Sequence[tuple[str, float, str]], *, title: str) -> str:
    """Draws a bar for each row of label, length and the figure beside it; lengths are 0 and more."""
    longest = max((length for _, length, _ in rows), default=0.0) or 1.0
    left = _LETTER * _LABEL_CHARACTERS + 6
    room = _WIDTH - left - 70
    parts = []
    for place, (label, length, figure) in enumerate(rows):
        middle = _ROW * (place + 0.5)
        width = max(1.0, room * length / longest)
        parts.append(_text(left - 6, middle + 4, _shortened(label), "end", full=label))
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{middle - 6:.1f}" width="{width:.1f}" height="12"/>')
        parts.append(_text(left + width + 5, middle + 4, figure, "start"))
    return _picture(title, _ROW * len(rows) + 4, parts)


def histogram(counts: Sequence[int], *, low: float, high: float, span: tuple[float, float], title: str) -> str:
    """Draws counts in equally wide bins from ``low`` to ``high`` on a logarithmic scale, with ``span`` marked.

    Counts of a tensor differ by orders of magnitude: on a linear scale nothing would be left of the outliers.
    """
    height = 150.0
    base, top = height - 24, 8.0
    across = _Axis(low=low, high=high if high > low else low + 1, start=10, end=_WIDTH - 10)
    tallest = math.log1p(max(counts, default=1)) or 1.0
    left, right = across.at(span[0]), across.at(span[1])
    parts = [f'<rect class="span" x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{base - top:.1f}"/>']
    step = (across.end - across.start) / max(1, len(counts))
    for place, count in enumerate(counts):
        if count:
            tall = max(1.0, (base - top) * math.log1p(count) / tallest)
            x = across.start + place * step
            parts.append(
                f'<rect class="bar" x="{x:.2f}" y="{base - tall:.1f}" width="{step * 0.9:.2f}" height="{tall:.1f}"/>'
            )
    for end, anchor in ((span[0], "start"), (span[1], "end")):
        x = across.at(end)
        parts.append(_line(x, top, x, base, "edge"))
        parts.append(_text(x, base + 16, f"{end:.4g}", anchor))
    return _picture(title, height, parts)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a text stands: its end next to a mark, and its base line."""

    x: float
    y: float
    anchor: str

    def box(self, text: str) -> tuple[float, float, float, float]:
        """Returns left, top, right and bottom of the room that ``text`` takes."""
        width = _WIDEST_LETTER * len(text)
        left = self.x if self.anchor == "start" else self.x - width
        return left, self.y - 11, left + width, self.y + 4


def _label_places(marks: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[_Place]:
    """Finds a place near each mark where its label covers no other label and no mark, as long as there is one."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    found = []
    for (x, y), label in zip(marks, labels, strict=True):
        near = [
            _Place(x + aside, y + lift, "start" if aside > 0 else "end")
            for lift in (-8, 18, -24, 34, -40, 50, -56, 66)
            for aside in ((9, -9) if x < _WIDTH * 0.6 else (-9, 9))
        ]
        place = next((place for place in near if _is_free(place.box(label), taken)), near[0])
        taken.append(place.box(label))
        found.append(place)
    return found


def _is_free(box: tuple[float, ...], taken: Sequence[tuple[float, ...]]) -> bool:
    left, top, right, bottom = box
    if left < _LEFT or right > _WIDTH or top < 0 or bottom > _PLOT_HEIGHT - _BOTTOM:
        return False
    return not any(left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Maps values to places in the picture."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        room = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low=low - room, high=high + room, start=start, end=end)

    def at(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Returns round values: a multiple of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


def _frame(across: _Axis, up: _Axis) -> list[str]:
    parts = []
    for value in across.ticks():
        x = across.at(value)
        parts += [_line(x, up.end, x, up.start, "grid"), _text(x, up.start + 16, f"{value:.4g}", "middle")]
    for value in up.ticks():
        y = up.at(value)
        parts += [_line(across.start, y, across.end, y, "grid"), _text(across.start - 5, y + 4, f"{value:.4g}", "end")]
    return parts


def _axis_labels(x_label: str, y_label: str, height: float) -> str:
    turned = f'<text transform="translate(13 {(height - _BOTTOM) / 2:.1f}) rotate(-90)" text-anchor="middle">'
    return _text((_LEFT + _WIDTH) / 2, height - 6, x_label, "middle") + f"{turned}{html.escape(y_label)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, *, full: str | None = None) -> str:
    hint = "" if full is None else f"<title>{html.escape(full)}</title>"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{hint}{html.escape(text)}</text>'


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    shown = html.escape(title)
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{shown}">'
        f"<title>{shown}</title>{''.join(parts)}</svg>"
    )


def _shortened(label: str) -> str:
    """Leaves out the middle of a label that is too long: names differ at their ends."""
    if len(label) <= _LABEL_CHARACTERS:
        return label
    kept = _LABEL_CHARACTERS - 1
    return f"{label[: kept // 2]}…{label[len(label) - (kept - kept // 2) :]}"
