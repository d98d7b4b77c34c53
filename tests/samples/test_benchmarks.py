"""The benchmarks measure what they say."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner

from qtool.calib.ranges import RANGE_METHODS
from qtool.cli.app import app

Python = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def digits(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one model, as the benchmarks want it."""
    folder, samples = tmp_path_factory.mktemp("models") / "digits", root / "samples"
    folder.mkdir()
    factory, shape = f"{samples / 'mnist_cnn.py'}:build", "image=batch,1,28,28"
    convert = ("convert", str(samples / "mnist_cnn.pth"), "--model", factory, "--input-shape", shape)
    made = CliRunner().invoke(app, [*convert, "-o", str(folder / "fp32.onnx")])
    assert made.exit_code == 0, made.output
    for part, count in (("calib", 40), ("eval", 500)):
        with np.load(samples / f"digits_{part}.npz") as file:
            np.savez(folder / f"{part}.npz", **{name: file[name][:count] for name in file.files})
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("compare", "calibration", "calibration_pass", "large_model", "onnxruntime_static", "plain_inference"),
        *("real_models", "conversion", "torch_exporter", "merging", "merge_once", "optimizing"),
        *("language_models", "judging_decoders", "onnxruntime_blocks", "train_decoder"),
    ],
)
def test_benchmarks_say_what_they_take(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = root / "benchmarks" / f"{name}.py"
    monkeypatch.setattr("sys.argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code in (None, 0)
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.slow
def test_models_are_judged_beside_the_float_model(root: Path, digits: Path, python: Python) -> None:
    compare = (str(root / "benchmarks" / "compare.py"), str(digits.parent), "--rounds", "2")
    result = python(
        *compare, "--rival", "--json", "--variant", "plain=--smallest", "--variant", "broken=--method nonsense"
    )
    rows = {row["made_by"]: row for row in json.loads(result.stdout)}
    found = {name: row["judgement"] for name, row in rows.items()}
    assert list(rows) == ["float", "plain", "broken", "onnxruntime minmax"]
    assert found["plain"]["sqnr_db"] > 30
    assert found["plain"]["accuracy"] > 0.98
    assert found["float"]["speedup"] == 1
    assert rows["plain"]["size_mb"] < 0.4 * rows["float"]["size_mb"]
    assert "nonsense" in found["broken"]["error"]
    assert result.returncode == 1


@pytest.mark.slow
def test_rows_that_are_whole_values_are_fed_one_by_one(root: Path, tmp_path: Path, python: Python) -> None:
    folder = tmp_path / "models" / "stateful"
    folder.mkdir(parents=True)
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,8] sound, float[2,1,8] state, int64 rate) => (float[1,8] y, float[2,1,8] new_state)
    <float[8,8] w> { a = MatMul (sound, w) s = ReduceSum <keepdims = 0> (state) r = Cast <to = 1> (rate)
    b = Add (a, s) y = Mul (b, r) new_state = Identity (state) }"""
    model, random = parser.parse_model(text), np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(random.normal(size=(8, 8)).astype(np.float32), "w"))
    onnx.save(model, folder / "fp32.onnx")
    for part in ("calib", "eval"):
        sound, state = (random.normal(size=shape).astype(np.float32) for shape in ((20, 1, 8), (20, 2, 1, 8)))
        np.savez(folder / f"{part}.npz", sound=sound, state=state, rate=np.full(20, 2))
    result = python(str(root / "benchmarks" / "compare.py"), str(folder), "--rounds", "1", "--rival", "--json")
    found = {row["made_by"]: row["judgement"] for row in json.loads(result.stdout)}
    assert found["qtool"]["sqnr_db"] > 15
    assert found["onnxruntime minmax"]["sqnr_db"] > 15


def test_every_real_model_says_what_it_is_fed(root: Path, python: Python) -> None:
    lines = python(str(root / "benchmarks" / "real_models.py"), "--list").stdout.splitlines()
    assert len(lines) >= 10
    assert all("; from " in line for line in lines)


@pytest.mark.slow
def test_calibration_is_timed_and_weighed(root: Path, digits: Path, python: Python) -> None:
    calibration = (str(root / "benchmarks" / "calibration.py"), str(digits / "fp32.onnx"), str(digits / "calib.npz"))
    result = python(*calibration, "--rounds", "1", "--times", "2", "--json")
    found = json.loads(result.stdout)
    assert {"pass", *(f"pass and ranges, {method}" for method in RANGE_METHODS)} == set(found["ratios"])
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert found["command_ratio"] > 0
    assert list(found["peak_mb"]) == ["40", "80"]


@pytest.mark.slow
def test_conversion_is_timed_beside_the_exporter(root: Path, python: Python) -> None:
    samples = root / "samples"
    given = (str(samples / "mnist_cnn.pth"), f"{samples / 'mnist_cnn.py'}:build", "image=batch,1,28,28")
    result = python(str(root / "benchmarks" / "conversion.py"), *given, "--rounds", "1")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["ratio"] == found["seconds"]["convert"][0] / found["seconds"]["exporter"][0]
    assert found["medians"] == {name: taken[0] for name, taken in found["seconds"].items()}
