import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.errors import GateError, UsageError
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.latency import Interval
from qtool.reporting.figures import FIGURES
from qtool.reporting.gates import Gate, check_gates, enforce, judge_all, parse_gate
from qtool.reporting.model import Measured, Report

MakeReport = Callable[..., Report]


def enforced(report: Report, *conditions: str) -> Report:
    gates = [parse_gate(text) for text in conditions]
    judged = replace(report, verdicts=judge_all(report, gates))
    enforce(judged)
    return judged


OPERATORS = ("<", "<=", ">", ">=", "==", "!=")


@given(
    gate=st.builds(
        Gate,
        figure=st.sampled_from(sorted(FIGURES)),
        output=st.none(),
        operator=st.sampled_from(OPERATORS),
        limit=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_a_gate_is_read_as_it_is_written(gate: Gate) -> None:
    assert parse_gate(str(gate)) == gate
    assert parse_gate(str(gate).replace(" ", "")) == gate


@given(text=st.text(max_size=30))
def test_any_text_is_a_gate_or_a_usage_error(text: str) -> None:
    try:
        gate = parse_gate(text)
    except UsageError:
        return
    assert parse_gate(str(gate)) == gate


@pytest.mark.parametrize("limit", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize("operator", OPERATORS)
def test_gates_compare_as_python_does(operator: str, limit: float) -> None:
    gate = parse_gate(f"cosine {operator} {limit}")
    for value in (-3.0, -1.5, 0.0, 2.0, 9.5, math.inf, -math.inf):
        assert gate.trips(Measured(value=value)) == eval(f"value {operator} limit", {"value": value, "limit": limit})


@pytest.mark.parametrize("operator", OPERATORS)
def test_nan_trips_every_gate(operator: str) -> None:
    assert parse_gate(f"sqnr_db {operator} 3").trips(Measured(value=math.nan))


@pytest.mark.parametrize(
    "text",
    ["", "top1_drop", "top1_drop >", "> 0.5", "top1_drop = 0.5", "top1_drop => 0.5", "top1_drop > x", "top1 < nan"],
)
def test_other_forms_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    assert "--fail-if" in caught.value.fix


def test_an_unknown_figure_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate("top1_dorp > 0.5")
    assert "did you mean 'top1_drop'" in caught.value.fix


def test_a_figure_of_models_takes_no_output() -> None:
    with pytest.raises(UsageError, match="speedup"):
        parse_gate("speedup[logits] < 2")


def test_gates_on_what_will_not_be_measured_are_refused_beforehand() -> None:
    def check(text: str, *, labels: bool = True, rounds: int = 25) -> None:
        check_gates([parse_gate(text)], outputs=["logits", "boxes"], labels=labels, rounds=rounds)

    check("top1 < 90")
    check("speedup < 1.3", labels=False)
    check("sqnr_db[boxes] < 9", labels=False, rounds=0)
    with pytest.raises(UsageError) as no_labels:
        check("top5_drop > 1", labels=False)
    assert "--labels" in no_labels.value.fix
    with pytest.raises(UsageError) as no_latency:
        check("throughput < 100", rounds=0)
    assert "--no-latency" in no_latency.value.fix
    with pytest.raises(UsageError) as no_output:
        check("sqnr_db[boxs] < 9")
    assert "did you mean 'boxes'" in no_output.value.fix


def test_gates_that_hold_raise_nothing(make_report: MakeReport) -> None:
    enforced(make_report(), "top1_drop > 0.5", "speedup < 1.3", "sqnr_db < 20")


def test_every_missed_gate_is_listed_with_value_limit_and_distance(make_report: MakeReport) -> None:
    with pytest.raises(GateError) as caught:
        enforced(make_report(), "top1_drop > 0.2", "speedup < 1.3", "size_mb > 0.75", "cosine <= 0.99")
    assert caught.value.problem == (
        "3 figures miss their gates: top1_drop is 0.5 points (fails if top1_drop > 0.2, missed by 0.3); "
        "size_mb is 1 MB (fails if size_mb > 0.75, missed by 0.25); cosine is 0.99 (fails if cosine <= 0.99)"
    )
    assert caught.value.exit_code == 1


def test_a_nan_figure_fails_with_its_reason(
    make_report: MakeReport, make_output: Callable[..., OutputFidelity]
) -> None:
    report = make_report(fidelity=(make_output(sqnr_db=math.nan, non_finite=3),))
    with pytest.raises(GateError, match="NaN or infinite"):
        enforced(report, "sqnr_db < 1")


def test_identical_outputs_pass_any_floor(make_report: MakeReport, make_output: Callable[..., OutputFidelity]) -> None:
    enforced(make_report(fidelity=(make_output(sqnr_db=math.inf),)), "sqnr_db < 100")


def test_the_only_output_may_be_named(make_report: MakeReport) -> None:
    with pytest.raises(GateError, match=r"sqnr_db\[logits\] is 20 dB"):
        enforced(make_report(), "sqnr_db[logits] < 40")


@pytest.mark.parametrize(
    ("figure", "hint"), [("top5_drop", "top1"), ("agreement", "sqnr_db"), ("equal_values", "sqnr_db")]
)
def test_a_figure_the_report_lacks_is_a_usage_error(
    make_report: MakeReport, make_output: Callable[..., OutputFidelity], figure: str, hint: str
) -> None:
    model = make_report().comparisons[0].quantized_model
    assert model.accuracy is not None
    few_classes = replace(model, accuracy=replace(model.accuracy, top5=None))
    report = make_report(fidelity=(make_output(top1_agreement=None),), quantized_model=few_classes)
    with pytest.raises(UsageError) as caught:
        enforced(report, f"{figure} > 1")
    assert hint in caught.value.fix


def test_a_noisy_figure_fails_only_where_its_whole_interval_does(make_report: MakeReport) -> None:
    report = make_report(speedup=Interval(median=1.28, low=1.2, high=1.36))
    judged = enforced(report, "speedup < 1.3", "speedup < 1.1", "latency_ms > 1.9", "speedup != 1.3")
    assert [verdict.outcome for verdict in judged.verdicts] == ["unproven", "passed", "unproven", "unproven"]
    with pytest.raises(GateError) as caught:
        enforced(report, "speedup < 1.4")
    assert caught.value.problem == (
        "a figure misses its gate: speedup is 1.28x (1.2 to 1.36 with 99 % confidence) "
        "(fails if speedup < 1.4, missed by 0.12)"
    )
    with pytest.raises(GateError):
        enforced(report, "speedup_low < 1.3")


def test_few_rounds_judge_nothing_that_is_noisy() -> None:
    with pytest.raises(UsageError) as caught:
        check_gates([parse_gate("speedup < 1.3")], outputs=["logits"], labels=False, rounds=7)
    assert "--rounds 8" in caught.value.fix
    check_gates([parse_gate("speedup_low < 1.3")], outputs=["logits"], labels=False, rounds=7)


def test_every_model_is_judged_and_named(make_report: MakeReport) -> None:
    first, second = make_report().comparisons[0], make_report(speedup=Interval(median=1.0, low=0.9, high=1.1))
    other = second.comparisons[0]
    other = replace(other, quantized_model=replace(other.quantized_model, name="slow.onnx"))
    with pytest.raises(GateError) as caught:
        enforced(make_report(comparisons=(first, other)), "speedup < 1.3")
    assert caught.value.problem.startswith("a figure misses its gate: slow.onnx: speedup is 1x")
