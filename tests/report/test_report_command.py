import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from qtool.cli.app import app
from qtool.manifest import FileRecord, Manifest, manifest_path, write_manifest
from qtool.metrics.memory import measure_memory
from qtool.reporting.figures import FIGURES

Pair = Any  # the dataclass in conftest.py, which tests cannot import
Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("without_memory")


@pytest.fixture
def run(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(
        *arguments: object,
        models: tuple[Path, ...] = (pair.float_model, pair.quantized_model),
        data: object = pair.data,
    ) -> Any:
        given = [] if data is None else ["--data", data]
        return CliRunner().invoke(app, ["report", *map(str, (*models, *given, *arguments))])

    return invoke


def figures_of(result: Any) -> dict[str, float]:
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout)["figures"])


def test_json_figures_match_numpy(pair: Pair, run: Run) -> None:
    result = run("--json", "--no-latency", "--batch-size", 5)
    figures = figures_of(result)
    # The runtime computes the quantized product on integers, so its own outputs are what the figures are about.
    a, b = (
        onnxruntime.InferenceSession(path).run(None, {"x": pair.x})[0]
        for path in (pair.float_model, pair.quantized_model)
    )
    assert a == pytest.approx(pair.x @ pair.weights, rel=1e-4, abs=1e-5)
    noise = (a.astype(np.float64) - b).ravel()
    assert figures["sqnr_db"] == pytest.approx(10 * np.log10(a.ravel() @ a.ravel() / (noise @ noise)), rel=1e-4)
    assert figures["max_abs_error"] == pytest.approx(np.abs(noise).max(), rel=1e-4)
    assert figures["agreement"] == pytest.approx(100 * (a.argmax(1) == b.argmax(1)).mean())
    assert figures["top1_float"] == pytest.approx(100 * (len(pair.x) - 4) / len(pair.x))
    assert figures["top1"] == pytest.approx(100 * (b.argmax(1) == pair.label).mean())
    assert figures["top1_drop"] == pytest.approx(figures["top1_float"] - figures["top1"])
    assert figures["size_mb"] == pair.quantized_model.stat().st_size / 1e6
    assert figures["latency_ms"] is None
    document = json.loads(result.stdout)
    assert (document["samples"], document["batch_size"], document["labels"]) == (len(pair.x), 5, "_label")


def test_latency_and_memory_are_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtool.workflows.report.report_times.measure_memory", measure_memory)
    figures = figures_of(run("--json", "--rounds", 7, "--threads", 1))
    assert figures["latency_ms"] > 0
    assert figures["latency_p95_ms"] >= figures["latency_ms"]
    assert figures["speedup_low"] <= figures["speedup"] <= figures["speedup_high"]
    assert figures["throughput"] > 0
    assert figures["memory_mb"] is None or figures["memory_mb"] > 1
    assert set(FIGURES) == set(figures)


def test_the_table_is_for_people(run: Run) -> None:
    result = run("--no-latency")
    assert result.exit_code == 0
    for text in ("float.onnx → quantized.onnx", "top-1 accuracy", "size on disk", "SQNR", "37 samples"):
        assert text in result.stdout


def test_markdown_is_alone_on_stdout(run: Run) -> None:
    result = run("--markdown", "-", "--no-latency")
    assert result.exit_code == 0
    assert result.stdout.startswith("### float.onnx → quantized.onnx\n\n|")
    assert "━" not in result.stdout


def test_a_file_gets_the_report_by_its_suffix(run: Run, tmp_path: Path) -> None:
    assert run("-o", "r.json", "--no-latency").exit_code == 0
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == "qtool.report/1"
    assert run("-o", "r.md", "--no-latency", "--json").exit_code == 0
    assert (tmp_path / "r.md").read_text(encoding="utf-8").startswith("### float.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.md"]


def test_a_file_that_exists_is_kept_without_force(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.md").write_text("mine")
    result = run("-o", "r.md", "--no-latency")
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert (tmp_path / "r.md").read_text() == "mine"
    assert run("-o", "r.md", "--no-latency", "--force").exit_code == 0
    assert (tmp_path / "r.md").read_text() != "mine"


def test_a_missed_gate_is_1_after_the_whole_report(run: Run) -> None:
    result = run("--json", "--no-latency", "--fail-if", "sqnr_db < 100", "--fail-if", "size_mb > 10")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["figures"]["sqnr_db"] < 100
    assert "sqnr_db is" in result.stderr
    assert "missed by" in result.stderr
    assert "size_mb" not in result.stderr


def test_gates_that_hold_are_0(run: Run) -> None:
    assert run("--no-latency", "--fail-if", "sqnr_db < 1", "--fail-if", "top1 < 1", "-q").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fail-if", "sqnr < 3"), ("no figure 'sqnr'", "did you mean 'sqnr_db'")),
        (("--fail-if", "sqnr_db"), ("is not a condition", "--fail-if 'top1_drop > 0.5'")),
        (("--fail-if", "speedup < 2", "--no-latency"), ("needs the latency", "--no-latency")),
        (("--fail-if", "sqnr_db[logit] < 2"), ("no output 'logit'", "did you mean 'logits'")),
        (("--json", "--markdown", "-"), ("exclude each other",)),
        (("-o", "report.txt"), (".json, .md, .html",)),
        (("-o", "missing/report.md"), ("does not exist", "mkdir")),
        (("--labels", "lable"), ("no array 'lable'",)),
        (("--rounds", "0"), ("--rounds",)),
    ],
)
def test_options_that_make_no_sense_are_2_before_anything_runs(
    run: Run, arguments: tuple[str, ...], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model ran")

    monkeypatch.setattr("qtool.runtime.session.Session.run", never)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


def test_data_without_labels_has_no_accuracy_to_gate(pair: Pair, run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", x=pair.x)
    figures = figures_of(run("--json", "--no-latency", data=tmp_path / "plain.npz"))
    assert figures["top1"] is None
    result = run("--fail-if", "top1_drop > 1", data=tmp_path / "plain.npz")
    assert result.exit_code == 2
    assert "--labels" in result.stderr


def test_labels_may_have_another_name(pair: Pair, run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", x=pair.x, digit=pair.label)
    figures = figures_of(run("--json", "--no-latency", "--labels", "digit", data=tmp_path / "named.npz"))
    assert figures["top1_float"] == pytest.approx(100 * (len(pair.x) - 4) / len(pair.x))


def test_labels_that_are_no_class_are_refused(pair: Pair, run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", x=pair.x, _label=pair.label + 100)
    result = run("--no-latency", data=tmp_path / "odd.npz")
    assert result.exit_code == 2
    assert "is not a class" in result.stderr


def test_a_limit_counts_samples(run: Run) -> None:
    result = run("--json", "--no-latency", "--limit", 9)
    assert json.loads(result.stdout)["samples"] == 9


def test_a_model_that_fixes_its_batch_is_fed_that_many(
    pair: Pair, run: Run, tmp_path: Path, classifier: Callable[..., onnx.ModelProto]
) -> None:
    onnx.save(classifier(pair.weights, quantized=True, rows=1), tmp_path / "one.onnx")
    document = json.loads(run("--json", "--no-latency", models=(pair.float_model, tmp_path / "one.onnx")).stdout)
    assert (document["samples"], document["batch_size"]) == (len(pair.x), 1)


def test_a_model_beside_itself_is_identical(pair: Pair, run: Run) -> None:
    result = run("--json", "--no-latency", "--fail-if", "sqnr_db < 200", models=(pair.float_model, pair.float_model))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["quantized_models"][0]["fidelity"][0]["identical"] is True


def test_models_that_do_not_belong_together_are_refused(
    pair: Pair, run: Run, tmp_path: Path, classifier: Callable[..., onnx.ModelProto]
) -> None:
    other = classifier(pair.weights, quantized=False)
    other.graph.output[0].name = other.graph.node[-1].output[0] = "logit"
    onnx.save(other, tmp_path / "renamed.onnx")
    result = run(models=(pair.float_model, tmp_path / "renamed.onnx"))
    assert result.exit_code == 2
    assert "no output 'logits'; the nearest is 'logit'" in result.stderr
    onnx.save(classifier(pair.weights[:5], quantized=False), tmp_path / "narrow.onnx")
    result = run(models=(pair.float_model, tmp_path / "narrow.onnx"))
    assert result.exit_code == 2
    assert "the input 'x'" in result.stderr


def test_broken_weights_show_as_not_finite(
    pair: Pair, run: Run, tmp_path: Path, classifier: Callable[..., onnx.ModelProto]
) -> None:
    weights = pair.weights.copy()
    weights[0, 3] = np.nan
    onnx.save(classifier(weights, quantized=False), tmp_path / "nan.onnx")
    result = run("--json", "--no-latency", "--fail-if", "sqnr_db < 1", models=(pair.float_model, tmp_path / "nan.onnx"))
    assert result.exit_code == 1
    assert "NaN" in result.stderr
    figures = json.loads(result.stdout)["figures"]
    assert (figures["sqnr_db"], figures["non_finite"]) == (None, len(pair.x))


@pytest.mark.parametrize(
    ("name", "content"), [("none.onnx", None), ("empty.onnx", b""), ("text.onnx", b"hello, world")]
)
def test_files_that_are_no_models_are_refused(
    pair: Pair, run: Run, tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run(models=(pair.float_model, tmp_path / name))
    assert result.exit_code == 2
    assert name in result.stderr
    assert "fix:" in result.stderr


def test_one_model_alone_is_refused(pair: Pair, run: Run) -> None:
    result = run(models=(pair.float_model,))
    assert result.exit_code == 2
    assert "only one model" in result.stderr


def test_no_data_is_refused(run: Run) -> None:
    result = run(data=None)
    assert result.exit_code == 2
    assert "--data" in result.stderr


def test_without_models_and_runs_the_way_out_is_named(run: Run) -> None:
    result = run(models=())
    assert result.exit_code == 2
    assert "qtool quantize" in result.stderr


@pytest.fixture
def a_run_of_quantize(pair: Pair, tmp_path: Path) -> Path:
    """Leaves models and a manifest in build/, as `qtool quantize` does."""
    build = tmp_path / "build"
    build.mkdir()
    for source in (pair.float_model, pair.quantized_model, pair.data):
        shutil.copy(source, build)
    record = {path.name: FileRecord(path=path, sha256=None, bytes=None) for path in build.iterdir()}
    manifest = Manifest(
        command="quantize",
        float_model=record["float.onnx"],
        quantized_model=record["quantized.onnx"],
        inputs={"calib_data": record["eval.npz"]},
        options={},
        versions={},
    )
    write_manifest(manifest_path(build / "quantized.onnx"), manifest, home=build)
    return build


def test_a_bare_report_is_on_the_newest_run(pair: Pair, run: Run, a_run_of_quantize: Path) -> None:
    result = run("--json", "--no-latency", "--output-dir", "build", models=())
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["quantized_models"][0]["path"].endswith("quantized.onnx")
    assert "calibrated on" not in result.stderr


def test_a_report_on_calibration_data_says_so(run: Run, a_run_of_quantize: Path) -> None:
    result = run("--json", "--no-latency", "--output-dir", "build", models=(), data=None)
    assert result.exit_code == 0, result.stderr
    assert "calibrated on" in result.stderr


def test_settings_alone_are_enough_for_a_report(pair: Pair, run: Run, a_run_of_quantize: Path) -> None:
    settings = f"""
        eval_data = {str(pair.data)!r}
        output_dir = "build"
        [report]
        no-latency = true
        json = true
        fail-if = ["size_ratio > 0.01"]
    """
    (a_run_of_quantize.parent / "qtool.toml").write_text(settings)
    result = run(models=(), data=None)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["data"] == str(pair.data)
    assert "size_ratio is" in result.stderr
