"""The page that ``--html`` writes, as a browser shows it."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtool.metrics.size_by_kind import SizePart
from qtool.reporting.html import to_html
from qtool.reporting.model import Report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390
# The narrowest window of a browser is wider than a phone: the page stands in a frame, and what it looks like beside it.
LOOK = """<!DOCTYPE html>
<iframe id="page" src="report.html" style="width: {width}px; height: 800px; border: 0"></iframe>
<pre id="seen"></pre>
<script>
  document.getElementById("page").onload = (event) => {{
    const page = event.target.contentDocument;
    const box = (element) => {{
      const {{left, top, right, bottom}} = element.getBoundingClientRect();
      return [left, top, right, bottom];
    }};
    document.getElementById("seen").textContent = JSON.stringify({{
      width: page.documentElement.scrollWidth,
      shown: page.documentElement.clientWidth,
      paper: getComputedStyle(page.body).backgroundColor,
      ink: getComputedStyle(page.body).color,
      plots: [...page.querySelectorAll("svg")].map((plot) => ({{
        name: plot.getAttribute("aria-label"),
        box: box(plot),
        texts: [...plot.querySelectorAll("text")].map((text) => [text.lastChild.textContent, ...box(text)]),
      }})),
      names: [...page.querySelectorAll("td:first-child")].map((cell) => [cell.textContent, ...box(cell)]),
      text: page.body.innerText,
    }});
  }};
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the search path")


def look(report: Report, folder: Path, *options: str, width: int = PHONE) -> dict[str, Any]:
    """Returns what the page looks like in a frame of a phone's width, in CSS pixels."""
    (folder / "report.html").write_text(to_html(report), encoding="utf-8")
    (folder / "look.html").write_text(LOOK.format(width=width), encoding="utf-8")
    command: list[Any] = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width + 100},900",
        "--enable-logging=stderr",
        *options,
        "--dump-dom",
        (folder / "look.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=240, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found is not None
    return dict(json.loads(html.unescape(found[1])))


def apart(one: list[float], other: list[float]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.fixture
def crowded(full_report: Report) -> Report:
    """Four models of long names with the same figures: all of their marks fall on two places."""
    first = full_report.comparisons[0]
    parts = (SizePart(kind="integer weights", bytes=900_000, tensors=4), SizePart(kind="graph", bytes=9, tensors=0))
    comparisons = [
        replace(first, quantized_model=replace(first.quantized_model, name=f"model_number_{n}.int8.onnx"))
        for n in range(4)
    ]
    measured = replace(first.float_model, size_parts=parts)
    return replace(full_report, comparisons=tuple(replace(one, float_model=measured) for one in comparisons))


@pytest.mark.parametrize("width", [PHONE, 1200])
def test_a_browser_shows_the_figures_and_plots_without_complaint(
    full_report: Report, tmp_path: Path, width: int
) -> None:
    seen = look(full_report, tmp_path, width=width)
    assert seen["width"] == seen["shown"]  # nothing but tables is moved sideways
    for figure in ("2.000 ms, 2.00x (1.90 to 2.10)", "97.40 %, -0.50 points", "speedup is 2x"):
        assert figure in seen["text"]
    assert len(seen["plots"]) == 4
    for plot in seen["plots"]:
        left, top, right, bottom = plot["box"]
        assert 0 <= left < right <= width
        assert bottom - top > 50


def test_texts_of_plots_cover_nothing_and_stay_inside(crowded: Report, tmp_path: Path) -> None:
    seen = look(crowded, tmp_path)
    scatters = [plot for plot in seen["plots"] if "against latency" in plot["name"]]
    assert len(scatters) == 2
    for plot in scatters:
        texts = plot["texts"]
        assert len([text for text, *_ in texts if "model" in text]) == 4
        for place, (text, *box) in enumerate(texts):
            assert plot["box"][0] <= box[0], text
            assert box[2] <= plot["box"][2], text
            for other, *other_box in texts[place + 1 :]:
                assert apart(box, other_box), (text, other)


def test_names_of_rows_leave_room_for_figures_on_a_phone(crowded: Report, tmp_path: Path) -> None:
    for text, left, _, right, _ in look(crowded, tmp_path)["names"]:
        assert right - left < PHONE / 2, text


@pytest.mark.parametrize(("options", "is_dark"), [((), False), (("--force-dark-mode",), True)])
def test_the_page_follows_the_theme(
    full_report: Report, tmp_path: Path, options: tuple[str, ...], is_dark: bool
) -> None:
    seen = look(full_report, tmp_path, *options)
    paper, ink = (sum(map(int, re.findall(r"\d+", seen[part])[:3])) for part in ("paper", "ink"))
    assert (paper < ink) == is_dark
    assert abs(paper - ink) > 450  # of 765: far enough apart to be read
