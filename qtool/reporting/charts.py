"""Draws bar charts and curves into picture files, with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _MARGIN, _ROW, _BAR_HEIGHT = 1200, 24, 30, 18
_TITLE_SIZE, _TEXT_SIZE = 22, 15
_WIDEST_LABEL, _GAP = 460, 12
_CURVE_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 90, 1150, 110, 680
_RADIUS = 6
_TICKS = 8
_PAPER, _INK, _GREY, _RULE, _BAR = "#ffffff", "#1f2933", "#66727f", "#dde2e8", "#2f6fb2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of the chart.

    Attributes:
        label: stands left of the bar; its middle is left out where it is too long.
        length: of the bar, 0 to 1.
        figure: stands right of the bar.
    """

    label: str
    length: float
    figure: str


def draw_bars(path: Path, title: str, subtitle: str, bars: Sequence[Bar]) -> None:
    """Writes a chart of ``bars``, the first on top, 1200 pixels wide and as high as it takes.

    Args:
        path: the file, whose suffix says which kind of picture.
        title: the first line.
        subtitle: the second line, in grey.
        bars: the rows.
    """
    head = _MARGIN + _TITLE_SIZE + _TEXT_SIZE + 3 * _GAP
    picture = Image.new("RGB", (_WIDTH, head + _ROW * len(bars) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    text = ImageFont.load_default(size=_TEXT_SIZE)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=ImageFont.load_default(size=_TITLE_SIZE))
    draw.text((_MARGIN, _MARGIN + _TITLE_SIZE + _GAP), subtitle, fill=_GREY, font=text)
    labels = [_shortened(bar.label, draw, text) for bar in bars]
    left = _MARGIN + max((draw.textlength(label, font=text) for label in labels), default=0.0) + _GAP
    figures = max((draw.textlength(bar.figure, font=text) for bar in bars), default=0.0)
    room = _WIDTH - _MARGIN - left - _GAP - figures
    for number, (bar, label) in enumerate(zip(bars, labels, strict=True)):
        top = head + number * _ROW
        middle = top + _ROW / 2
        draw.text((left - _GAP, middle), label, fill=_INK, font=text, anchor="rm")
        end = left + max(1.0, room * min(max(bar.length, 0.0), 1.0))
        draw.rectangle((left, middle - _BAR_HEIGHT / 2, end, middle + _BAR_HEIGHT / 2), fill=_BAR)
        draw.text((end + _GAP, middle), bar.figure, fill=_GREY, font=text, anchor="lm")
    picture.save(path)


def _shortened(label: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Leaves out the middle of a label that is too wide: names differ at their ends."""
    kept = len(label)
    shown = label
    while kept > 2 and draw.textlength(shown, font=font) > _WIDEST_LABEL:
        kept -= 1
        shown = f"{label[: (kept + 1) // 2]}...{label[len(label) - kept // 2 :]}"
    return shown


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A point of the curve.

    Attributes:
        x: where it is.
        y: where it is.
        label: stands above it; empty for none.
    """

    x: float
    y: float
    label: str = ""


def draw_curve(
    path: Path, title: str, subtitle: str, points: Sequence[CurvePoint], *, x_label: str, y_label: str
) -> None:
    """Writes a chart of ``points``, which are finite, joined in their order of x.

    Args:
        path: the file, whose suffix says which kind of picture.
        title: the first line.
        subtitle: the second line, in grey.
        points: at least one.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
    """
    picture = Image.new("RGB", (_WIDTH, _CURVE_HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    text = ImageFont.load_default(size=_TEXT_SIZE)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=ImageFont.load_default(size=_TITLE_SIZE))
    draw.text((_MARGIN, _MARGIN + _TITLE_SIZE + _GAP), subtitle, fill=_GREY, font=text)
    across, up = _ticks([point.x for point in points]), _ticks([point.y for point in points])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_RIGHT - _LEFT) * (x - across[0]) / (across[-1] - across[0]),
            _BOTTOM - (_BOTTOM - _TOP) * (y - up[0]) / (up[-1] - up[0]),
        )

    for value in across:
        x, _ = place(value, up[0])
        draw.line((x, _TOP, x, _BOTTOM), fill=_RULE)
        draw.text((x, _BOTTOM + _GAP), f"{value:.4g}", fill=_GREY, font=text, anchor="mt")
    for value in up:
        _, y = place(across[0], value)
        draw.line((_LEFT, y, _RIGHT, y), fill=_RULE)
        draw.text((_LEFT - _GAP, y), f"{value:.4g}", fill=_GREY, font=text, anchor="rm")
    draw.text(((_LEFT + _RIGHT) / 2, _BOTTOM + 3 * _GAP), x_label, fill=_INK, font=text, anchor="mt")
    draw.text((_LEFT, _TOP - _GAP), y_label, fill=_INK, font=text, anchor="lb")
    ordered = [(point, place(point.x, point.y)) for point in sorted(points, key=lambda point: (point.x, point.y))]
    draw.line([spot for _, spot in ordered], fill=_BAR, width=3)
    for point, (x, y) in ordered:
        draw.ellipse((x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS), fill=_BAR)
        draw.text((x, y - _GAP), point.label, fill=_INK, font=text, anchor="mb")
    picture.save(path)


def _ticks(values: Sequence[float]) -> list[float]:
    """Returns round numbers from below the smallest value to above the largest, two at least."""
    low, high = min(values), max(values)
    room = (high - low) / _TICKS or max(abs(high), 1.0) / _TICKS
    power = 10.0 ** math.floor(math.log10(room))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= room * 0.999)
    first = math.floor(low / step)
    return [number * step for number in range(first, max(math.ceil(high / step), first + 1) + 1)]
