"""Draws a bar chart into a picture file, with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _MARGIN, _ROW, _BAR_HEIGHT = 1200, 24, 30, 18
_TITLE_SIZE, _TEXT_SIZE = 22, 15
_WIDEST_LABEL, _GAP = 460, 12
_PAPER, _INK, _GREY, _BAR = "#ffffff", "#1f2933", "#66727f", "#2f6fb2"


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
