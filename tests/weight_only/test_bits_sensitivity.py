"""``qtool sensitivity --bits``, against models with the same bits that are run one by one."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from PIL import Image
from typer.testing import CliRunner

from qtool.cli.app import app

_NETWORK = """
net (float[n,64] x) => (float[n,48] y)
{
    h = MatMul (x, w1)
    a = Relu (h)
    small = MatMul (a, w2)
    b = Relu (small)
    y = MatMul (b, w3)
}
"""
_SHAPES = {"w1": (64, 128), "w2": (128, 64), "w3": (64, 48)}


def _write_model(folder: Path) -> Path:
    """Writes three products, as net.onnx; and samples, as data.npz."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_NETWORK}')
    generator = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        array = (generator.standard_t(4, shape) * 0.1).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, folder / "net.onnx")
    np.savez(folder / "data.npz", x=generator.normal(0, 1, (160, 64)).astype(np.float32))
    return folder / "net.onnx"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model and its samples."""
    return _write_model(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The files that the command writes for the model, and its JSON."""
    folder = tmp_path_factory.mktemp("measured")
    path = _write_model(folder)
    options = ["--calib-data", folder / "data.npz", "--bits", "--samples", 64, "--json"]
    files = ["-o", folder / "weights.csv", "--plot", folder / "curve.png"]
    result = CliRunner().invoke(app, ["sensitivity", str(path), *map(str, options), *map(str, files)])
    assert result.exit_code == 0, result.stderr
    return folder, json.loads(result.stdout)


@pytest.fixture
def report(measured: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The JSON; the files that belong to it are in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder, found = measured
    for name in ("weights.csv", "curve.png"):
        shutil.copy(folder / name, tmp_path / name)
    return found


def test_each_weight_is_measured_with_each_number_of_bits(report: dict[str, Any]) -> None:
    assert {row["tensor"] for row in report["weights"]} == set(_SHAPES)
    for row in report["weights"]:
        inputs, outputs = _SHAPES[row["tensor"]]
        blocks = inputs // 32
        for bits in (2, 4, 8):
            stored = outputs * (inputs * bits / 8 + blocks * (4 + bits / 8))
            assert row["saved_bytes"][str(bits)] == pytest.approx(4 * inputs * outputs - stored)
        assert row["sqnr_db"]["2"] + 5 < row["sqnr_db"]["4"] < row["sqnr_db"]["8"] - 15
    worst = [row["sqnr_db"]["4"] for row in report["weights"]]
    assert worst == sorted(worst)


def test_the_curve_gives_what_quantize_does(run: Any, report: dict[str, Any], model: Path) -> None:
    points = {point["goal"]: point for point in report["curve"]}
    assert {"4 bits", "8 bits"} < set(points)
    marks = {goal: point for goal, point in points.items() if goal.endswith("dB")}
    assert marks
    for goal, point in marks.items():
        assert point["sqnr_db"] >= float(goal.removesuffix(" dB"))
    sizes = [point["file_bytes"] for point in report["curve"]]
    assert sizes == sorted(sizes)
    for bits in (4, 8):
        result = run(
            *("quantize", model, "--calib-data", "data.npz", "--scheme", "weights", "--bits", bits),
            *("--weight-method", report["method"], "--accuracy-level", "0", "-o", f"{bits}.onnx", "--json"),
        )
        assert result.code == 0, result.err
        point = points[f"{bits} bits"]
        assert point["weights"] == {str(bits): 3}
        # Names, attributes and the function that unpacks weigh more in a file this small than they would.
        assert result.json["quantized_bytes"] == pytest.approx(point["file_bytes"], abs=3000)
        assert result.json["attempts"][0]["sqnr_db"] == pytest.approx(point["sqnr_db"], abs=1.5)


def test_files_hold_the_table_and_the_curve(report: dict[str, Any]) -> None:
    with Path("weights.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tensor"] for row in rows] == [row["tensor"] for row in report["weights"]]
    assert float(rows[0]["sqnr_db_4_bits"]) == pytest.approx(report["weights"][0]["sqnr_db"]["4"], abs=1e-3)
    with Image.open("curve.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
    # Paper, ink, and the line.
    assert colours is not None
    assert len(colours) > 3


def test_tables_are_shown(run: Any, model: Path) -> None:
    result = run("sensitivity", model, "--calib-data", "data.npz", "--bits", "-o", "weights.json")
    assert result.code == 0, result.err
    assert "Mixed bits: file size and accuracy" in result.out
    assert "w2" in result.out
    assert json.loads(Path("weights.json").read_text(encoding="utf-8"))["schema"] == "qtool.bits_sensitivity/1"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--block-size", "32"), "--block-size has no effect without --bits"),
        (("--bits", "--method", "entropy"), "--method has no effect with --bits"),
        (("--bits", "--block-size", "48"), "there are no blocks of 48"),
        (("--bits", "--plot", "curve.svg"), "is no .png"),
        (("--bits", "-o", "weights.txt"), "is neither .json nor .csv"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Any, model: Path, options: tuple[str, ...], problem: str) -> None:
    result = run("sensitivity", model, "--calib-data", "data.npz", *options)
    assert result.code == 2
    assert problem in " ".join(result.err.split())
