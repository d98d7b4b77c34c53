"""The report as one page that needs nothing else: no network, no scripts, readable on a phone and in the dark."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from qtool.reporting.model import ModelComparison, Report
from qtool.reporting.png import thumbnail
from qtool.reporting.svg import Point, bars, histogram, scatter
from qtool.reporting.table import tables
from qtool.reporting.table_form import Table, number

_WORST_LAYERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _TableSection:
    """A table, its heading's element, and the column that says what became of a gate."""

    table: Table
    heading: str
    outcome: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """A picture, in HTML, and what stands below it."""

    caption: str
    picture: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlotSection:
    """Figures under one title; ``kind`` is their class in the style sheet."""

    title: str
    figures: Sequence[_Figure]
    kind: str = "plots"


def to_html(report: Report) -> str:
    """Writes the report as one HTML document with its tables and plots; ends with a line break."""
    found = tables(report)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = report.machine
    # Gates come first, since they are what a page is most often opened for.
    gates = [table for table in found if "outcome" in table.columns]
    sections = [_section(found[0], heading="h1"), *(_section(table, heading="h2") for table in gates)]
    plots = [_PlotSection(title="Accuracy and time", figures=_scatters(report))]
    rest = [_section(table, heading="h2") for table in found[1:] if table not in gates]
    details = [plot for comparison in report.comparisons for plot in _details(comparison, report)]
    # Names of tensors and files are whatever somebody called them: all text is escaped.
    environment = Environment(autoescape=True, loader=PackageLoader("qtool.reporting", ""), keep_trailing_newline=True)
    return environment.get_template("page.html.jinja").render(
        title=found[0].title,
        style=Markup(files("qtool.reporting").joinpath("page.css").read_text(encoding="utf-8").strip()),
        sections=[*sections, *_shown(plots), *rest, *_shown(details)],
        where=f"{versions}; {machine.system}, {machine.processor}, {machine.cores} cores",
    )


def _section(table: Table, *, heading: str) -> _TableSection:
    outcome = table.columns.index("outcome") if "outcome" in table.columns else None
    return _TableSection(table=table, heading=heading, outcome=outcome)


def _details(comparison: ModelComparison, report: Report) -> Iterator[_PlotSection]:
    name = comparison.quantized_model.name
    of_data = f" of {comparison.dataset}" if len(report.datasets) > 1 else ""
    title = f"Samples{of_data} that {name} changes most"
    yield _PlotSection(title=title, figures=_pictures(comparison), kind="pictures")
    yield _PlotSection(title=f"Inside of {name}", figures=_inside(comparison))


def _shown(sections: Sequence[_PlotSection]) -> list[_PlotSection]:
    return [section for section in sections if section.figures]


def _figure(caption: str, picture: str) -> _Figure:
    return _Figure(caption=caption, picture=Markup(picture))


def _scatters(report: Report) -> list[_Figure]:
    if not report.rounds:
        return []
    found = []
    for dataset in report.datasets:
        comparisons = report.on(dataset)
        on_data = f" on {dataset.name}" if len(report.datasets) > 1 else ""
        figures = comparisons[0].figures
        known = [pair for pair in _WITH_FLOAT if figures[pair[0]].value is not None]
        accuracy = known[0] if known else ("agreement", None)
        for figure, of_float, label in ((*accuracy, _ACCURACY[accuracy[0]]), ("sqnr_db", None, "SQNR, dB")):
            points = _points(comparisons, figure, of_float)
            if points:
                title = f"{label}{on_data} against latency"
                picture = scatter(points, title=title, x_label="median latency, ms", y_label=label)
                caption = f"{label}{on_data}, against the median time of one sample with its 99 % confidence interval"
                found.append(_figure(caption, picture))
    return found


_WITH_FLOAT = (("top1", "top1_float"), ("perplexity", "perplexity_float"))
_ACCURACY = {"perplexity": "perplexity", "top1": "top-1 accuracy, %", "agreement": "same class as float, %"}


def _points(comparisons: Sequence[ModelComparison], figure: str, of_float: str | None) -> list[Point]:
    points = []
    if of_float is not None:
        points += _point(comparisons[0], "float", of_float, "latency_float_ms")
    for comparison in comparisons:
        points += _point(comparison, comparison.quantized_model.name, figure, "latency_ms")
    return points


def _point(comparison: ModelComparison, label: str, figure: str, latency: str) -> list[Point]:
    y, x = comparison.figures[figure].value, comparison.figures[latency]
    if y is None or not math.isfinite(y) or x.value is None or x.low is None or x.high is None:
        return []
    return [Point(label=label, x=x.value, y=y, low=x.low, high=x.high, is_base=label == "float")]


def _pictures(comparison: ModelComparison) -> list[_Figure]:
    found = []
    for sample in comparison.samples:
        if sample.picture is None:
            continue
        source = base64.b64encode(thumbnail(sample.picture)).decode("ascii")
        caption = f"sample {sample.index}, {number(sample.sqnr_db, '.1f', ' dB')}"
        if sample.float_class is not None:
            caption += f": class {sample.float_class}, quantized {sample.quantized_class}"
        found.append(_figure(caption, f'<img alt="sample {sample.index}" src="data:image/png;base64,{source}">'))
    return found


def _inside(comparison: ModelComparison) -> list[_Figure]:
    found = []
    known = [layer for layer in comparison.layers if math.isfinite(layer.sqnr_db)]
    worst = sorted(known, key=lambda layer: layer.sqnr_db)[:_WORST_LAYERS]
    if worst:
        # Relative errors, so that a longer bar is a worse layer.
        rows = [(layer.tensor, 10 ** (-layer.sqnr_db / 20), f"{layer.sqnr_db:.1f} dB") for layer in worst]
        caption = "Error of the tensors that differ most from the float model, relative to their values, with the SQNR"
        found.append(_figure(caption, bars(rows, title="error by layer")))
    for entry in comparison.histograms:
        caption = (
            f"{entry.tensor}: values of the float model on a logarithmic scale, "
            f"{entry.low:.4g} to {entry.high:.4g}; shaded: what the integers stand for; "
            f"{100 * entry.clipped_share:.3g} % clipped"
        )
        picture = histogram(
            entry.counts,
            low=entry.low,
            high=entry.high,
            span=(entry.range_low, entry.range_high),
            title=f"values of {entry.tensor}",
        )
        found.append(_figure(caption, picture))
    return found
