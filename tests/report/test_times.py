"""Where the time goes, times in other settings, and cold starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from qtool.cli.app import app

pytestmark = pytest.mark.usefixtures("without_memory")

Pair = Any  # the dataclass in conftest.py, which tests cannot import


@pytest.fixture
def report(pair: Pair) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        models = (pair.float_model, pair.quantized_model, "--data", pair.data, "--threads", 1)
        return CliRunner().invoke(app, ["report", *map(str, (*models, *arguments))])

    return run


def test_every_setting_is_timed_with_its_own_interval(report: Callable[..., Result]) -> None:
    result = report("--no-latency", "--batch-sizes", "1,8", "--thread-counts", "1,2", "--rounds", 3, "--json")
    assert result.exit_code == 0, result.stderr
    (model,) = json.loads(result.stdout)["quantized_models"]
    assert [(point["batch_size"], point["threads"]) for point in model["grid"]] == [(1, 1), (8, 1), (1, 2), (8, 2)]
    for point in model["grid"]:
        assert point["speedup"]["low"] < point["speedup"]["median"] < point["speedup"]["high"]
        assert point["float_ms"]["median"] > 0
        assert point["quantized_ms"]["median"] > 0


def test_one_list_of_settings_leaves_the_other_as_it_is(report: Callable[..., Result]) -> None:
    for options, expected in (
        (("--batch-sizes", "4"), [(4, 1)]),
        (("--thread-counts", "2"), [(1, 2)]),
        ((), []),
    ):
        result = report("--no-latency", "--rounds", 2, "--json", *options)
        (model,) = json.loads(result.stdout)["quantized_models"]
        assert [(point["batch_size"], point["threads"]) for point in model["grid"]] == expected


@pytest.mark.parametrize("text", ["0", "1,", "a", "-1", "1;2"])
def test_settings_that_are_no_numbers_are_refused(report: Callable[..., Result], text: str) -> None:
    result = report(f"--batch-sizes={text}")
    assert result.exit_code == 2
    assert "--batch-sizes 1,8" in result.stderr


def test_a_batch_that_the_data_cannot_fill_is_refused(report: Callable[..., Result]) -> None:
    result = report("--no-latency", "--batch-sizes", "1000")
    assert result.exit_code == 2
    assert "a batch of 1000 cannot be timed" in result.stderr


def test_a_batch_that_the_model_does_not_take_is_refused(
    pair: Pair, tmp_path: Path, classifier: Callable[..., onnx.ModelProto]
) -> None:
    onnx.save(classifier(pair.weights, quantized=True, rows=1), tmp_path / "one.onnx")
    models = (pair.float_model, tmp_path / "one.onnx", "--data", pair.data)
    result = CliRunner().invoke(app, ["report", *map(str, models), "--no-latency", "--batch-sizes", "4"])
    assert result.exit_code == 2
    assert "fix:" in result.stderr


def test_the_profile_names_the_operators_that_onnxruntime_runs(report: Callable[..., Result]) -> None:
    result = report("--no-latency", "--profile", "--json")
    document = json.loads(result.stdout)
    for model in (document["float_model"], document["quantized_models"][0]):
        operators = {entry["operator"]: entry for entry in model["operators"]}
        assert any("MatMul" in name for name in operators)
        assert all(entry["seconds"] > 0 and entry["kernels"] >= 1 for entry in operators.values())
        times = [entry["seconds"] for entry in model["operators"]]
        assert times == sorted(times, reverse=True)
    shown = report("--no-latency", "--profile").stdout
    assert "Where the time goes" in shown
    assert "MatMul" in shown


@pytest.mark.slow
def test_a_cold_start_takes_longer_than_a_warm_run(report: Callable[..., Result]) -> None:
    result = report("--cold-start", "--rounds", 3, "--json", "--fail-if", "cold_start_ms < 0")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    figures, intervals = document["figures"], document["quantized_models"][0]["intervals"]
    low, high = intervals["cold_start_ms"]
    assert low <= figures["cold_start_ms"] <= high
    assert figures["cold_start_ms"] > figures["latency_ms"]
    assert figures["cold_start_float_ms"] > figures["latency_float_ms"]


def test_gates_on_a_cold_start_ask_for_its_measurement(report: Callable[..., Result]) -> None:
    result = report("--fail-if", "cold_start_ms > 100")
    assert result.exit_code == 2
    assert "--cold-start" in result.stderr


def test_the_ends_of_eight_starts_hold_the_median_in_99_of_100_cases() -> None:
    random = np.random.default_rng(4)
    starts = random.exponential(size=(20_000, 8))
    inside = (starts.min(axis=1) <= np.log(2)) & (np.log(2) <= starts.max(axis=1))
    assert inside.mean() == pytest.approx(1 - 2 / 2**8, abs=0.003)
