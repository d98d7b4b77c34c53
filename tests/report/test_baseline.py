"""A report beside an earlier one, as ``--baseline`` compares them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtool.errors import InputError, UsageError
from qtool.metrics.latency import Interval
from qtool.reporting.baseline import RULES, Baseline, read_baseline, regressions
from qtool.reporting.figures import FIGURES, with_figures
from qtool.reporting.json import to_json
from qtool.reporting.model import Report

MakeReport = Callable[..., Report]
MakeOutput = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> Callable[[Report], Baseline]:
    def written(report: Report) -> Baseline:
        path = tmp_path / "old.json"
        path.write_text(json.dumps(to_json(report), allow_nan=False))
        return read_baseline(path)

    return written


def failed(report: Report, baseline: Baseline) -> dict[str, str]:
    return {
        verdict.message.split()[0]: verdict.message
        for verdict in regressions(report, baseline)
        if verdict.outcome == "failed"
    }


def test_every_rule_is_about_a_figure() -> None:
    assert set(RULES) <= set(FIGURES)


def test_a_report_does_not_fall_behind_itself(make_report: MakeReport, store: Any, make_output: MakeOutput) -> None:
    for fidelity in ((make_output(),), (make_output(sqnr_db=math.inf, max_abs_error=0.0),)):
        report = make_report(fidelity=fidelity)
        assert {verdict.outcome for verdict in regressions(report, store(report))} == {"passed"}


def test_what_became_worse_is_named_with_both_values(
    make_report: MakeReport, make_output: MakeOutput, store: Any
) -> None:
    earlier = store(make_report())
    worse = failed(make_report(fidelity=(make_output(sqnr_db=19.4, top1_agreement=0.976),)), earlier)
    assert worse == {"sqnr_db": "sqnr_db is 19.4 dB, and was 20 dB in old.json"}
    assert not failed(make_report(fidelity=(make_output(sqnr_db=25.0),)), earlier)
    assert set(failed(make_report(fidelity=(make_output(sqnr_db=math.nan, non_finite=1),)), earlier)) == {
        "sqnr_db",
        "non_finite",
    }


def test_a_lost_score_is_a_regression_whichever_way_it_points(make_report: MakeReport, store: Any) -> None:
    def judged(score: float, *, lower_is_better: bool) -> Report:
        first = make_report().comparisons[0]
        changed = replace(
            first,
            float_model=replace(first.float_model, metric=0.5),
            quantized_model=replace(first.quantized_model, metric=score),
            lower_is_better=lower_is_better,
        )
        return make_report(comparisons=(with_figures(changed),), metric="own")

    for lower_is_better, better, worse in ((False, 0.6, 0.4), (True, 0.4, 0.6)):
        earlier = store(judged(0.5, lower_is_better=lower_is_better))
        assert not failed(judged(better, lower_is_better=lower_is_better), earlier)
        assert set(failed(judged(worse, lower_is_better=lower_is_better), earlier)) == {"metric_drop"}


def test_outputs_that_were_identical_must_stay_so(make_report: MakeReport, make_output: MakeOutput, store: Any) -> None:
    earlier = store(make_report(fidelity=(make_output(sqnr_db=math.inf, max_abs_error=0.0),)))
    assert set(failed(make_report(fidelity=(make_output(sqnr_db=90.0),)), earlier)) == {"sqnr_db"}


def test_a_speedup_is_lost_only_where_the_intervals_lie_apart(make_report: MakeReport, store: Any) -> None:
    earlier = store(make_report())  # 1.9 to 2.1
    assert not failed(make_report(speedup=Interval(median=1.85, low=1.8, high=1.92)), earlier)
    assert set(failed(make_report(speedup=Interval(median=1.8, low=1.7, high=1.89)), earlier)) == {"speedup"}


def test_models_are_matched_by_name_where_there_are_several(make_report: MakeReport, store: Any) -> None:
    first = make_report().comparisons[0]
    second = replace(first, quantized_model=replace(first.quantized_model, name="b.onnx", path="b.onnx"))
    earlier = store(make_report(comparisons=(first, second)))
    models = {verdict.model for verdict in regressions(make_report(comparisons=(second,)), earlier)}
    assert models == {"b.onnx"}
    third = replace(first, quantized_model=replace(first.quantized_model, name="c.onnx"))
    with pytest.raises(UsageError, match=r"b\.onnx"):
        regressions(make_report(comparisons=(third,)), earlier)


def test_reports_on_other_data_are_not_compared(make_report: MakeReport, store: Any) -> None:
    earlier = store(make_report())
    (used,) = make_report().datasets
    for changes in ({"samples": 999}, {"name": "other.npz"}):
        with pytest.raises(InputError, match="samples of"):
            regressions(make_report(datasets=(replace(used, **changes),)), earlier)
    assert not failed(make_report(datasets=(replace(used, source="elsewhere/eval.npz"),)), earlier)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "qtool.report/0"}', '{"schema": "qtool.report/1"}'])
def test_other_files_are_no_baseline(tmp_path: Path, text: str) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(InputError, match="not a report"):
        read_baseline(tmp_path / "old.json")
    with pytest.raises(InputError, match="there is no report"):
        read_baseline(tmp_path / "none.json")
