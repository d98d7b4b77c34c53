"""The report as one page that needs nothing else: no network, no scripts, readable on a phone and in the dark."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from qtool.report.model import ModelComparison, Report
from qtool.report.png import thumbnail
from qtool.report.svg import Point, bars, histogram, scatter
from qtool.report.table import tables
from qtool.report.table_form import Table, number

_WORST_LAYERS = 20
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2933; --grey: #66727f; --rule: #d5dbe1;
  --mark: #2f6fb2; --base: #b2572f; --span: #2f6fb21f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e4e9ee; --grey: #9aa7b4; --rule: #36404a; --mark: #6aa9e9; --base: #e99a6a;
    --span: #6aa9e933; }
}
body { margin: 0 auto; padding: 1.5rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
p, figcaption { color: var(--grey); font-size: 0.9rem; overflow-wrap: anywhere; }
/* Names stay in sight while a table is moved, and a shade at its edge tells that there is more of it. */
.scroll { overflow-x: auto; background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100%
  no-repeat local, linear-gradient(to left, var(--rule), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid var(--rule); text-align: right; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr[class] td:last-child { white-space: normal; min-width: 14rem; }
tr.failed td, tr.unjudged td { color: var(--base); font-weight: 600; }
.plots { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
figure { margin: 0; min-width: 0; }
img { width: 8rem; image-rendering: pixelated; border: 1px solid var(--rule); }
svg { width: 100%; max-width: 40rem; height: auto; }
svg text { fill: var(--ink); font-size: 12px; } .grid { stroke: var(--rule); }
.mark { fill: var(--mark); stroke: var(--mark); stroke-width: 2; }
.base { fill: var(--base); stroke: var(--base); stroke-width: 2; }
.bar { fill: var(--mark); } .span { fill: var(--span); } .edge { stroke: var(--base); stroke-width: 2; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
@media (max-width: 40rem) {
  body { padding: 1rem; font-size: 15px; } th, td { padding-right: 0.6rem; }
  th:first-child, td:first-child { min-width: 5rem; max-width: 8rem; white-space: normal; overflow-wrap: break-word; }
}
""".strip()


def to_html(report: Report) -> str:
    """Writes the report as one HTML document with its tables and plots; ends with a line break."""
    found = tables(report)
    title = html.escape(found[0].title)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = report.machine
    where = html.escape(f"{versions}; {machine.system}, {machine.processor}, {machine.cores} cores")
    # Gates come first, since they are what a page is most often opened for.
    gates = [table for table in found if "outcome" in table.columns]
    sections = [_table(found[0], heading="h1"), *(_table(table, heading="h2") for table in gates)]
    sections.append(_plots("Accuracy and time", _scatters(report)))
    sections += [_table(table, heading="h2") for table in found[1:] if table not in gates]
    several = len(report.datasets) > 1
    for comparison in report.comparisons:
        name = comparison.quantized_model.name
        of_data = f" of {comparison.dataset}" if several else ""
        sections.append(_plots(f"Samples{of_data} that {name} changes most", _pictures(comparison), kind="pictures"))
        sections.append(_plots(f"Inside of {name}", _inside(comparison)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<p>{where}</p>\n</main>\n</body>\n</html>\n"
    )


def _table(table: Table, *, heading: str) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    place = table.columns.index("outcome") if "outcome" in table.columns else None
    rows = []
    for row in table.rows:
        kind = "" if place is None else f' class="{html.escape(row[place])}"'
        rows.append(f"<tr{kind}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>")
    caption = f"<p>{html.escape(table.caption)}</p>" if table.caption else ""
    return (
        f"<section>\n<{heading}>{html.escape(table.title)}</{heading}>\n"
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + f"\n</tbody>\n</table></div>\n{caption}\n</section>"
    )


def _plots(title: str, figures: list[tuple[str, str]], *, kind: str = "plots") -> str:
    if not figures:
        return ""
    shown = "\n".join(
        f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>" for caption, picture in figures
    )
    return f'<section>\n<h2>{html.escape(title)}</h2>\n<div class="{kind}">\n{shown}\n</div>\n</section>'


def _scatters(report: Report) -> list[tuple[str, str]]:
    if not report.rounds:
        return []
    found = []
    for dataset in report.datasets:
        comparisons = report.on(dataset)
        on_data = f" on {dataset.name}" if len(report.datasets) > 1 else ""
        accuracy = ("top1", "top1_float") if comparisons[0].figures["top1"].value is not None else ("agreement", None)
        for figure, of_float, label in ((*accuracy, _ACCURACY[accuracy[0]]), ("sqnr_db", None, "SQNR, dB")):
            points = _points(comparisons, figure, of_float)
            if points:
                title = f"{label}{on_data} against latency"
                picture = scatter(points, title=title, x_label="median latency, ms", y_label=label)
                caption = f"{label}{on_data}, against the median time of one sample with its 99 % confidence interval"
                found.append((caption, picture))
    return found


_ACCURACY = {"top1": "top-1 accuracy, %", "agreement": "same class as float, %"}


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


def _pictures(comparison: ModelComparison) -> list[tuple[str, str]]:
    found = []
    for sample in comparison.samples:
        if sample.picture is None:
            continue
        source = base64.b64encode(thumbnail(sample.picture)).decode("ascii")
        caption = f"sample {sample.index}, {number(sample.sqnr_db, '.1f', ' dB')}"
        if sample.float_class is not None:
            caption += f": class {sample.float_class}, quantized {sample.quantized_class}"
        found.append((caption, f'<img alt="sample {sample.index}" src="data:image/png;base64,{source}">'))
    return found


def _inside(comparison: ModelComparison) -> list[tuple[str, str]]:
    found = []
    known = [layer for layer in comparison.layers if math.isfinite(layer.sqnr_db)]
    worst = sorted(known, key=lambda layer: layer.sqnr_db)[:_WORST_LAYERS]
    if worst:
        # Relative errors, so that a longer bar is a worse layer.
        rows = [(layer.tensor, 10 ** (-layer.sqnr_db / 20), f"{layer.sqnr_db:.1f} dB") for layer in worst]
        caption = "Error of the tensors that differ most from the float model, relative to their values, with the SQNR"
        found.append((caption, bars(rows, title="error by layer")))
    for entry in comparison.histograms:
        caption = (
            f"{entry.tensor}: values of the float model on a logarithmic scale, "
            f"{entry.low:.4g} to {entry.high:.4g}; shaded: the range of the integers; "
            f"{100 * entry.clipped_share:.3g} % clipped"
        )
        picture = histogram(
            entry.counts,
            low=entry.low,
            high=entry.high,
            span=(entry.range_low, entry.range_high),
            title=f"values of {entry.tensor}",
        )
        found.append((caption, picture))
    return found
