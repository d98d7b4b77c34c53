import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qtool.metrics.accuracy import Accuracy
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.memory import Memory
from qtool.reporting.figures import FIGURES
from qtool.reporting.model import Report

MakeReport = Callable[..., Report]
MakeOutput = Callable[..., OutputFidelity]


OF_TEXT = {name for name, figure in FIGURES.items() if figure.need in ("text", "token times")}


def figures(report: Report) -> dict[str, float | None]:
    return {name: figure.value for name, figure in report.comparisons[0].figures.items()}


def test_every_figure_is_what_its_description_says(make_report: MakeReport) -> None:
    assert figures(make_report()) == {
        "sqnr_db": 20.0,
        "cosine": 0.99,
        "max_abs_error": 0.5,
        "mean_abs_error": 0.1,
        "agreement": 98.0,
        "equal_values": None,
        "non_finite": 0,
        "top1": 97.4,
        "top1_float": 97.9,
        "top1_drop": 0.5,
        "top5": 99.8,
        "top5_float": 99.9,
        "top5_drop": 0.1,
        "metric": None,
        "metric_float": None,
        "metric_drop": None,
        **dict.fromkeys(OF_TEXT),
        "latency_ms": 2.0,
        "latency_float_ms": 4.0,
        "latency_p95_ms": 2.5,
        "latency_float_p95_ms": 5.0,
        "speedup": 2.0,
        "speedup_low": 1.9,
        "speedup_high": 2.1,
        "throughput": 900.0,
        "throughput_float": 500.0,
        "cold_start_ms": None,
        "cold_start_float_ms": None,
        "size_mb": 1.0,
        "size_float_mb": 4.0,
        "size_ratio": 0.25,
        "memory_mb": 80.0,
        "memory_float_mb": 100.0,
        "memory_ratio": 0.8,
    }


def test_every_figure_has_one_line_of_description() -> None:
    for name, figure in FIGURES.items():
        assert figure.description, name
        assert "\n" not in figure.description, name


def test_a_drop_of_whole_samples_is_no_longer_number_than_it_is(make_report: MakeReport) -> None:
    full = make_report()
    models = [
        replace(model, accuracy=Accuracy(top1=top1, top5=None, samples=1000))
        for model, top1 in ((full.float_model, 0.983), (full.comparisons[0].quantized_model, 0.981))
    ]
    assert 100 * 0.983 - 100 * 0.981 > 0.2  # by the last digits of binary numbers
    values = figures(make_report(float_model=models[0], quantized_model=models[1]))
    assert (values["top1_drop"], values["top5_drop"]) == (0.2, None)


def test_several_outputs_have_the_worst_and_each_its_own(make_report: MakeReport, make_output: MakeOutput) -> None:
    outputs = (
        make_output(name="boxes", sqnr_db=12.0, max_abs_error=0.1, top1_agreement=None),
        make_output(name="scores", sqnr_db=30.0, max_abs_error=0.9),
        make_output(name="ids", sqnr_db=None, max_abs_error=None, top1_agreement=None, equal_share=0.5),
    )
    values = figures(make_report(fidelity=outputs))
    assert (values["sqnr_db"], values["max_abs_error"]) == (12.0, 0.9)
    assert (values["agreement"], values["equal_values"]) == (98.0, 50.0)
    assert (values["sqnr_db[scores]"], values["sqnr_db[ids]"]) == (30.0, None)


@pytest.mark.parametrize("nan_first", [True, False])
def test_a_nan_in_any_output_is_the_worst(make_report: MakeReport, make_output: MakeOutput, nan_first: bool) -> None:
    outputs = [make_output(name="a", sqnr_db=math.nan), make_output(name="b")]
    values = figures(make_report(fidelity=tuple(outputs if nan_first else reversed(outputs))))
    assert math.isnan(values["sqnr_db"] or 0)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"accuracy": None}, {"top1", "top5", "top1_drop", "top5_drop"}),
        ({"latency": None, "throughput": None}, {"latency_ms", "latency_p95_ms", "throughput"}),
        ({"memory": Memory(reason="unknown")}, {"memory_mb", "memory_ratio"}),
    ],
)
def test_what_was_not_measured_is_none(make_report: MakeReport, changes: dict[str, Any], missing: set[str]) -> None:
    full = make_report()
    values = figures(make_report(quantized_model=replace(full.comparisons[0].quantized_model, **changes)))
    asked_for = {"cold_start_ms", "cold_start_float_ms", "metric", "metric_float", "metric_drop"}
    assert {name for name, value in values.items() if value is None} == missing | asked_for | OF_TEXT | {"equal_values"}
