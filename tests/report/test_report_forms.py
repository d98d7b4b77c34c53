import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qtool.metrics.fidelity import OutputFidelity
from qtool.reporting.figures import FIGURES
from qtool.reporting.json import SCHEMA, to_json
from qtool.reporting.markdown import to_markdown
from qtool.reporting.model import Report
from qtool.reporting.names import display_names
from qtool.reporting.table import tables

MakeReport = Callable[..., Report]
MakeOutput = Callable[..., OutputFidelity]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_tables_show_both_models_and_the_change(make_report: MakeReport) -> None:
    models, outputs = tables(make_report())
    rows = {row[0]: row[1:] for row in models.rows}
    assert rows["top-1 accuracy"] == ("97.90 %", "97.40 %", "-0.50 points")
    assert rows["latency, median"] == ("4.000 ms", "2.000 ms", "2.00x (1.90 to 2.10)")
    assert rows["throughput, batch 16"] == ("500.0 /s", "900.0 /s", "1.80x")
    assert rows["size on disk"] == ("4.00 MB", "1.00 MB", "25.0 %")
    assert outputs.rows == (("logits", "20.00 dB", "0.990000", "0.5", "0.1", "98.00 %"),)


def test_tables_leave_out_what_was_not_measured(make_report: MakeReport) -> None:
    full = make_report().comparisons[0]
    bare = [
        replace(model, accuracy=None, latency=None, throughput=None)
        for model in (full.float_model, full.quantized_model)
    ]
    models, _ = tables(make_report(speedup=None, float_model=bare[0], quantized_model=bare[1], rounds=0))
    assert [row[0] for row in models.rows] == ["size on disk", "peak memory"]
    assert "rounds" not in models.caption


@pytest.mark.parametrize(
    ("sqnr_db", "shown"), [(math.inf, "identical"), (-math.inf, "all noise"), (math.nan, "NaN"), (7.25, "7.25 dB")]
)
def test_signal_to_noise_is_shown_in_words_where_it_is_no_number(
    make_report: MakeReport, make_output: MakeOutput, sqnr_db: float, shown: str
) -> None:
    _, outputs = tables(make_report(fidelity=(make_output(sqnr_db=sqnr_db),)))
    assert outputs.rows[0][1] == shown


def test_broken_outputs_are_named_below_the_table(make_report: MakeReport, make_output: MakeOutput) -> None:
    _, outputs = tables(make_report(fidelity=(make_output(non_finite=3), make_output(name="n", unmatched_batches=2))))
    assert "'logits' has 3 values that are NaN" in outputs.caption
    assert "'n' has another shape in 2 runs" in outputs.caption


def test_markdown_tables_are_whole(make_report: MakeReport, make_output: MakeOutput) -> None:
    text = to_markdown(make_report(fidelity=(make_output(name="a|b"), make_output(name="c"))))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for head, rule, *rows in blocks:
        assert all(re.fullmatch(r"---:?", cell) for cell in cells(rule))
        assert {len(cells(line)) for line in (head, rule, *rows)} == {len(cells(head))}
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_markdown_keeps_names_from_being_markup(make_report: MakeReport) -> None:
    text = to_markdown(make_report())
    assert r"net\|int8.onnx" in text
    assert r"Any\_CPU" in text


def test_json_holds_every_figure_and_no_number_that_json_lacks(
    make_report: MakeReport, make_output: MakeOutput
) -> None:
    report = make_report(
        fidelity=(
            make_output(name="same", sqnr_db=math.inf, max_abs_error=0.0),
            make_output(name="broken", sqnr_db=math.nan, cosine=math.nan, non_finite=2),
        )
    )
    document = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert document["schema"] == SCHEMA == "qtool.report/1"
    assert set(FIGURES) <= set(document["figures"])
    same, broken = document["quantized_models"][0]["fidelity"]
    assert (same["sqnr_db"], same["identical"]) == (None, True)
    assert (broken["sqnr_db"], broken["identical"], broken["non_finite"]) == (None, False, 2)
    assert document["figures"]["sqnr_db"] is None
    (model,) = document["quantized_models"]
    assert model["latency"]["median_ms"] == 2.0
    assert model["figures"] == document["figures"]
    assert model["intervals"]["speedup"] == [1.9, 2.1]
    assert "size_mb" not in model["intervals"]
    assert document["machine"]["cores"] == 2


def test_several_models_stand_beside_each_other(make_report: MakeReport) -> None:
    first = make_report().comparisons[0]
    second = replace(first, quantized_model=replace(first.quantized_model, name="b.onnx"))
    report = make_report(comparisons=(first, second))
    models, outputs = tables(report)
    assert models.columns == ("", "float", "net|int8.onnx", "b.onnx")
    rows = {row[0]: row[1:] for row in models.rows}
    assert rows["latency, median"] == ("4.000 ms", *["2.000 ms, 2.00x (1.90 to 2.10)"] * 2)
    assert [row[:2] for row in outputs.rows] == [("net|int8.onnx", "logits"), ("b.onnx", "logits")]
    document = to_json(report)
    assert [model["name"] for model in document["quantized_models"]] == ["net|int8.onnx", "b.onnx"]
    assert document["figures"] is None


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("m/a.onnx", "m/b.onnx"), ("a.onnx", "b.onnx")),
        (("a/net.onnx", "b/net.onnx"), ("a/net.onnx", "b/net.onnx")),
        (("a.onnx", "a.onnx", "a.onnx"), ("a.onnx", "a.onnx (2)", "a.onnx (3)")),
        (("x/a/n.onnx", "y/a/n.onnx", "z.onnx"), ("x/a/n.onnx", "y/a/n.onnx", "z.onnx")),
    ],
)
def test_models_have_the_shortest_names_that_tell_them_apart(paths: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert display_names([Path(path) for path in paths]) == names


def test_the_form_of_the_json_is_described(make_report: MakeReport) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    section = page.split("## The report as JSON", 1)[1]
    described = set(re.findall(r"`(\w+)`", section))
    document = to_json(make_report())
    assert set(document) <= described
    assert set(document["quantized_models"][0]) <= described
