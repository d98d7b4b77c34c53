"""``qtool report`` on several datasets at once."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from qtool.cli.app import app
from qtool.reporting.figures import FIGURES
from qtool.workflows.report import report_times
from qtool.workflows.report.report_data import DataSource

Pair = Any  # the dataclass in conftest.py, which tests cannot import


@pytest.fixture
def night(pair: Pair, tmp_path: Path) -> Path:
    """Other samples, whose labels are wrong more often."""
    x = np.random.default_rng(3).normal(size=(20, pair.x.shape[1])).astype(np.float32)
    label = (x @ pair.weights).argmax(1)
    label[:10] = (label[:10] + 1) % 10
    np.savez(tmp_path / "night.npz", x=x, _label=label)
    return tmp_path / "night.npz"


@pytest.fixture
def report(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_memory: None) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, models: tuple[Path, ...] = (pair.float_model, pair.quantized_model)) -> Result:
        return CliRunner().invoke(app, ["report", *map(str, (*models, *arguments))])

    return run


def on_both(pair: Pair, night: Path) -> tuple[str, ...]:
    return ("--data", f"day={pair.data}", "--eval-data", f"night={night}")


def test_each_dataset_has_the_figures_that_it_has_alone(pair: Pair, night: Path, report: Any) -> None:
    result = report(*on_both(pair, night), "--no-latency", "--json")
    assert result.exit_code == 0, result.stderr
    both = json.loads(result.stdout)
    assert both["figures"] is both["data"] is both["samples"] is both["float_model"]["accuracy"] is None
    assert [(used["name"], used["samples"], used["labels"]) for used in both["datasets"]] == [
        ("day", 37, "_label"),
        ("night", 20, "_label"),
    ]
    for source, entry in zip((pair.data, night), both["quantized_models"], strict=True):
        alone = json.loads(report("--data", source, "--no-latency", "--json").stdout)
        of_data = [name for name, figure in FIGURES.items() if figure.of_data]
        assert {name: entry["figures"][name] for name in of_data} == {name: alone["figures"][name] for name in of_data}
        (model,) = alone["quantized_models"]
        assert (entry["samples"], entry["classes"], entry["fidelity"]) == (
            model["samples"],
            model["classes"],
            model["fidelity"],
        )
    assert [entry["dataset"] for entry in both["quantized_models"]] == ["day", "night"]


def test_times_are_measured_once(pair: Pair, night: Path, report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = report_times.interleaved_times
    monkeypatch.setattr(report_times, "interleaved_times", lambda *a, **b: calls.append(b) or real(*a, **b))
    result = report(*on_both(pair, night), "--rounds", 3, "--json")
    assert [call["rounds"] for call in calls] == [3, 3]  # one sample, and a batch
    day, dark = json.loads(result.stdout)["quantized_models"]
    for figure in ("latency_ms", "speedup", "throughput", "size_mb"):
        assert day["figures"][figure] == dark["figures"][figure]


def test_gates_hold_on_each_dataset_and_name_it(pair: Pair, night: Path, report: Any) -> None:
    gates = ("--fail-if", "top1 < 80", "--fail-if", "size_ratio > 0.01", "--no-latency", "--junit", "r.xml")
    result = report(*on_both(pair, night), *gates)
    assert result.exit_code == 1
    assert "2 figures miss their gates: size_ratio is" in result.stderr
    assert re.search(r"; night: top1 is \d+ % \(fails if top1 < 80", result.stderr)
    (suite,) = ET.parse("r.xml").getroot()
    failed = {case.get("name"): case.find("failure") is not None for case in suite.iter("testcase")}
    assert failed == {"size_ratio > 0.01": True, "top1 < 80 on day": False, "top1 < 80 on night": True}
    properties = {entry.get("name") for entry in suite.iter("property")}
    assert {"top1 on day", "top1 on night", "size_mb"} <= properties
    assert not {"top1", "size_mb on day"} & properties


def test_gates_name_model_and_dataset_where_there_are_several(
    pair: Pair, night: Path, report: Any, tmp_path: Path, classifier: Callable[..., onnx.ModelProto]
) -> None:
    onnx.save(classifier(-pair.weights, quantized=True), tmp_path / "turned.onnx")
    models = (pair.float_model, pair.quantized_model, tmp_path / "turned.onnx")
    result = report(*on_both(pair, night), "--no-latency", "--fail-if", "sqnr_db < 5", models=models)
    assert "2 figures miss their gates: turned.onnx on day: sqnr_db" in result.stderr
    assert "turned.onnx on night: sqnr_db" in result.stderr


def test_every_form_shows_both(pair: Pair, night: Path, report: Any, tmp_path: Path) -> None:
    result = report(*on_both(pair, night), "--rounds", 3, "--html", "r.html", "--markdown", "r.md", "--changes")
    assert result.exit_code == 0, result.stderr
    page, text = ((tmp_path / name).read_text(encoding="utf-8") for name in ("r.html", "r.md"))
    for shown in (result.stdout, page, text.replace("\\", "")):
        for words in ("top-1 accuracy, day", "top-1 accuracy, night", "37 samples of day", "20 samples of night"):
            assert words in " ".join(shown.split())
        assert shown.count("latency, median") == 1
        assert "Samples that change most: night" in shown
    assert page.count("<svg") >= 4  # accuracy and noise against time, on both
    assert "top-1 accuracy, % on night" in page


def test_a_regression_on_one_dataset_is_named(pair: Pair, night: Path, report: Any, tmp_path: Path) -> None:
    assert report(*on_both(pair, night), "--no-latency", "-o", "old.json").exit_code == 0
    assert report(*on_both(pair, night), "--no-latency", "--baseline", "old.json").exit_code == 0
    document = json.loads((tmp_path / "old.json").read_text())
    document["quantized_models"][1]["figures"]["sqnr_db"] += 3
    (tmp_path / "old.json").write_text(json.dumps(document))
    result = report(*on_both(pair, night), "--no-latency", "--baseline", "old.json")
    assert result.exit_code == 1
    assert "a figure misses its gate: night: sqnr_db is" in result.stderr
    fewer = report("--data", f"day={pair.data}", "--no-latency", "--baseline", "old.json")
    assert fewer.exit_code == 2
    assert "same data" in fewer.stderr


def test_reports_that_list_no_datasets_are_still_read(pair: Pair, report: Any, tmp_path: Path) -> None:
    report("--data", pair.data, "--no-latency", "-o", "old.json")
    document = json.loads((tmp_path / "old.json").read_text())
    del document["datasets"], document["quantized_models"][0]["dataset"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    result = report("--data", pair.data, "--no-latency", "--baseline", "old.json", "--json")
    assert result.exit_code == 0, result.stderr
    assert {verdict["outcome"] for verdict in json.loads(result.stdout)["verdicts"]} == {"passed"}


def test_a_dataset_without_labels_is_named_before_anything_runs(pair: Pair, report: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=pair.x)
    data = ("--data", pair.data, "--data", "bare.npz")
    gate = report(*data, "--fail-if", "top1 < 1")
    assert (gate.exit_code, "bare.npz has none" in gate.stderr) == (2, True)
    metric = report(*data, "--metric", "top1")
    assert (metric.exit_code, "bare.npz has none" in metric.stderr) == (2, True)
    assert report(*data, "--no-latency", "--fail-if", "sqnr_db < 1").exit_code == 0


def test_two_datasets_of_one_name_are_refused(pair: Pair, night: Path, report: Any) -> None:
    result = report("--data", f"x={pair.data}", "--data", f"x={night}")
    assert result.exit_code == 2
    assert "--data NAME=DATA" in result.stderr


def test_settings_give_one_dataset_or_several(pair: Pair, night: Path, report: Any, tmp_path: Path) -> None:
    settings = tmp_path / "qtool.toml"
    settings.write_text(f"eval_data = {str(pair.data)!r}\n")
    assert json.loads(report("--no-latency", "--json").stdout)["samples"] == 37
    settings.write_text(f"[report]\ndata = ['day={pair.data.as_posix()}', 'night={night.as_posix()}']\n")
    assert len(json.loads(report("--no-latency", "--json").stdout)["datasets"]) == 2


def test_a_path_with_an_equals_sign_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert DataSource.parse("a=b.npz") == DataSource(source="b.npz", name="a")
    Path("a=b.npz").touch()
    assert DataSource.parse("a=b.npz") == DataSource(source="a=b.npz")
    assert DataSource.parse("C:\\data=1\\x.npz") == DataSource(source="C:\\data=1\\x.npz")
    assert DataSource.parse("data/x=1.npz") == DataSource(source="data/x=1.npz")
