from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qtool.search.output_evaluator import OutputEvaluator


def _quantized_layers(path: Path) -> set[str]:
    graph = onnx.load(path).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    return {node.name for node in layers if node.input[1] in dequantized}


# Equalization would mend the layer; here it has to stay broken.
_KEPT_BAD = ("--no-cle", "--target", "x86-vnni")
_OTHERS = {f"net[0]/{name}" for name in ("c1", "c2", "c4", "logits")}


@pytest.mark.parametrize("goal", [("--min-sqnr", "20"), ("--min-agreement", "95%"), ("--max-drop", "2%")])
def test_exactly_the_layer_that_integers_ruin_stays_float(
    run: Callable[..., Any], model: Path, data: Path, bad: str, goal: tuple[str, str]
) -> None:
    result = run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", "q.onnx", *goal, "--json")
    assert result.code == 0, result.err
    mixed = result.json["mixed_precision"]
    assert mixed["float_layers"] == [bad]
    assert mixed["met"] is True
    assert mixed["reached"]["sqnr_db"] > 20 > mixed["integers_everywhere"]["sqnr_db"]
    assert _quantized_layers(model.with_name("q.onnx")) == _OTHERS
    reasons = {node["node"]: node["reason"] for node in result.json["float_nodes"]}
    assert reasons[bad].startswith("kept float for --m")
    assert mixed["speedup"] > 0
    assert mixed["integers_everywhere_speedup"] > 0


def test_the_report_names_what_stays_float(run: Callable[..., Any], model: Path, data: Path, bad: str) -> None:
    shown = run("quantize", model, *_KEPT_BAD, "--calib-data", data, "--min-sqnr", "20").out
    assert f"kept in float for it: {bad} " in shown
    assert "fully quantized" in shown


def test_the_manifest_records_the_goal(run: Callable[..., Any], model: Path, data: Path) -> None:
    assert run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", "q.onnx", "--min-sqnr", "20").code == 0
    options = json.loads(model.with_name("q.manifest.json").read_text(encoding="utf-8"))["options"]
    assert options["goal"] == {"min_sqnr_db": 20.0, "min_agreement": None, "max_drop": None}


def test_a_goal_that_integers_reach_changes_nothing(run: Callable[..., Any], model: Path, data: Path) -> None:
    assert run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", "plain.onnx", "--max-float", "0").code == 0
    result = run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", "q.onnx", "--min-sqnr", "-50", "--json")
    assert result.json["mixed_precision"]["float_layers"] == []
    assert model.with_name("q.onnx").read_bytes() == model.with_name("plain.onnx").read_bytes()


def test_a_goal_out_of_reach_writes_the_best_and_exits_with_1(
    run: Callable[..., Any], model: Path, data: Path, bad: str
) -> None:
    result = run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", "q.onnx", "--min-sqnr", "200", "--json")
    assert result.code == 1
    assert "--min-sqnr 200 is not reached" in result.err
    mixed = result.json["mixed_precision"]
    assert mixed["met"] is False
    assert bad in mixed["float_layers"]
    assert mixed["reached"]["sqnr_db"] > mixed["integers_everywhere"]["sqnr_db"]
    assert _quantized_layers(model.with_name("q.onnx")) < _OTHERS


def test_no_time_gives_the_plain_result(run: Callable[..., Any], model: Path, data: Path) -> None:
    assert run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", "plain.onnx", "--max-float", "0").code == 0
    arguments = ("--min-sqnr", "20", "--time-budget", "0")
    result = run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", "q.onnx", *arguments)
    assert result.code == 1
    assert "the time budget of 0 s was used up" in result.err
    assert model.with_name("q.onnx").read_bytes() == model.with_name("plain.onnx").read_bytes()


@pytest.mark.slow
def test_an_interrupt_gives_the_best_so_far(
    run: Callable[..., Any], model: Path, data: Path, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assess = OutputEvaluator.assess
    merit: list[float] = []

    def interrupted(evaluator: OutputEvaluator, *arguments: Any) -> Any:
        # The float model, integers everywhere, the first two choices; then a person presses Ctrl-C.
        if len(merit) == 4:
            merit.append(0.0)
            raise KeyboardInterrupt
        found = assess(evaluator, *arguments)
        merit.append(found.sqnr_db)
        return found

    monkeypatch.setattr(OutputEvaluator, "assess", interrupted)
    # What is fitted once the layers are chosen may bring the result above the choices that were tried.
    arguments = ("--no-reconstruction", "--min-sqnr", "200", "--json")
    result = run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", "q.onnx", *arguments)
    assert result.code == 1
    assert "interrupted" in result.err
    mixed = result.json["mixed_precision"]
    assert mixed["tried"] == 3
    assert bad in mixed["float_layers"]
    assert mixed["reached"]["sqnr_db"] == pytest.approx(max(merit[1:4]))


def test_a_second_run_writes_the_same(run: Callable[..., Any], model: Path, data: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        assert run("quantize", model, *_KEPT_BAD, "--calib-data", data, "-o", name, "--max-drop", "0").code == 0
    assert model.with_name("a.onnx").read_bytes() == model.with_name("b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-agreement", "95"), "must be between 0 and 1"),
        (("--max-drop", "little"), "must be between 0 and 1"),
        (("--min-sqnr", "nan"), "must be a finite number of decibels"),
        (("--time-budget", "5", "--max-float", "0"), "has no effect without a search"),
        (("--max-float", "much"), "must be between 0 and 1"),
        (("--max-float", "10%", "--min-sqnr", "20"), "exclude each other"),
        (("--min-sqnr", "20", "--scheme", "dynamic"), "has no effect with --scheme dynamic"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    run: Callable[..., Any], model: Path, data: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("quantize", model, *_KEPT_BAD, "--calib-data", data, *arguments)
    assert result.code == 2
    assert message in result.err


def test_statistics_alone_cannot_judge(run: Callable[..., Any], model: Path, data: Path) -> None:
    assert run("calibrate", model, "--calib-data", data, "-o", "c.stats.npz").code == 0
    result = run("quantize", model, "--calib-stats", "c.stats.npz", "--min-sqnr", "20")
    assert (result.code, "needs samples to evaluate on" in result.err) == (2, True)
    beside = run("quantize", model, "--calib-stats", "c.stats.npz", "--calib-data", data, "--min-sqnr", "20")
    assert beside.code == 0, beside.err


def test_a_drop_needs_labels(run: Callable[..., Any], model: Path, data: Path, tmp_path: Path) -> None:
    with np.load(data) as arrays:
        np.savez(tmp_path / "bare.npz", image=arrays["image"])
    result = run("quantize", model, "--calib-data", "bare.npz", "--max-drop", "1%")
    assert (result.code, "needs labels" in result.err) == (2, True)
    assert not (tmp_path / "net.int8.onnx").exists()
