"""The page that ``--html`` writes."""

import html.parser
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from qtool.metrics.latency import Interval
from qtool.reporting.html import to_html
from qtool.reporting.model import Report

MakeReport = Callable[..., Report]
VOID = {"meta", "link", "br", "img", "hr"}


class Page(html.parser.HTMLParser):
    """Reads a page, and refuses tags that are not closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data.strip())

    def of(self, tag: str, kind: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag and attributes.get("class") == kind]


def test_the_page_is_well_formed_and_holds_the_figures(full_report: Report) -> None:
    page = Page(to_html(full_report))
    for text in ("97.40 %, -0.50 points", "2.000 ms, 2.00x (1.90 to 2.10)", "20.00 dB", "10.0 dB", "speedup is 2x"):
        assert text in page.texts
    assert "<b>&.onnx" in page.texts  # as text, not as a tag
    assert not [tag for tag, _ in page.tags if tag == "b"]
    assert len(page.of("tr", "failed")) == 1


def test_the_plots_show_every_model_layer_and_range(full_report: Report) -> None:
    page = Page(to_html(full_report))
    pictures = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert pictures == [
        "top-1 accuracy, % against latency",
        "SQNR, dB against latency",
        "error by layer",
        "values of layer.0",
    ]
    assert len(page.of("circle", "mark")) == 4  # two models in each of two plots
    assert len(page.of("circle", "base")) == 1  # float has an accuracy, and no noise
    assert len(page.of("rect", "bar")) == 3 + 3  # layers, and bins that are not empty
    assert len(page.of("rect", "span")) == 1


def test_longer_bars_are_worse_layers(full_report: Report) -> None:
    picture = re.search(r'aria-label="error by layer".*?</svg>', to_html(full_report))
    assert picture is not None
    widths = [float(width) for width in re.findall(r'class="bar"[^>]*width="([\d.]+)"', picture[0])]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] / widths[2] == pytest.approx(10 ** (2 / 20), rel=0.01)


def test_marks_lie_inside_of_the_picture(make_report: MakeReport, full_report: Report) -> None:
    wide = Interval(median=900.0, low=0.001, high=5000.0)
    for one in (full_report, make_report(), make_report(speedup=wide)):
        for x in re.findall(r' c?x[12]?="([-\d.]+)"', to_html(one)):
            assert 0 <= float(x) <= 400


def test_the_page_needs_nothing_else(full_report: Report) -> None:
    text = to_html(full_report)
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe")]
    assert not re.search(r"https?:|url\(|@import|//", text)
    for query in ("prefers-color-scheme: dark", "max-width: 40rem", 'name="viewport"'):
        assert query in text


def test_a_page_without_times_has_no_empty_plot(make_report: MakeReport) -> None:
    full = make_report().comparisons[0]
    bare = [replace(model, latency=None, throughput=None) for model in (full.float_model, full.quantized_model)]
    text = to_html(make_report(float_model=bare[0], quantized_model=bare[1], speedup=None, rounds=0))
    assert "<svg" not in text
    assert "Accuracy and time" not in text
