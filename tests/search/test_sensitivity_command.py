from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from qtool.reporting.charts import Bar, draw_bars


def test_the_layer_that_integers_ruin_comes_first(run: Callable[..., Any], model: Path, data: Path, bad: str) -> None:
    found = run("sensitivity", model, "--calib-data", data, "--json").json
    assert found["schema"] == "qtool.sensitivity/1"
    worst, *others = found["layers"]
    assert worst["layer"] == bad
    assert worst["noise_share"] > 0.9
    assert all(layer["sqnr_db"] > worst["sqnr_db"] + 10 for layer in others)
    assert found["sqnr_db"] < worst["sqnr_db"] + 3


def test_every_layer_is_ranked_with_the_operators_behind_it(
    run: Callable[..., Any], model: Path, data: Path, bad: str
) -> None:
    layers = run("sensitivity", model, "--calib-data", data, "--json").json["layers"]
    assert [layer["rank"] for layer in layers] == [1, 2, 3, 4, 5]
    assert sum(layer["noise_share"] for layer in layers) == pytest.approx(1.0)
    groups = {layer["layer"]: layer["nodes"] for layer in layers}
    assert set(groups) == {f"net[0]/{name}" for name in ("c1", "c2", "c3", "c4", "logits")}
    assert groups[bad] == [bad, "net[0]/s"]


def test_files_hold_what_the_json_says_and_the_picture_shows_it(
    run: Callable[..., Any], model: Path, data: Path, tmp_path: Path
) -> None:
    told = run("sensitivity", model, "--calib-data", data, "-o", "s.json", "--plot", "s.png", "--json").json
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == told
    assert run("sensitivity", model, "--calib-data", data, "-o", "s.csv").code == 0
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [layer["layer"] for layer in told["layers"]]
    assert [float(row["sqnr_db"]) for row in rows] == pytest.approx(
        [layer["sqnr_db"] for layer in told["layers"]], abs=1e-3
    )
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width == 1200
        pixels = np.asarray(picture.convert("RGB"))
    # The longest bar is by far the longest: blue in the first row is most of the blue there is.
    blue = (pixels == (0x2F, 0x6F, 0xB2)).all(axis=2).sum(axis=1)
    first = slice(*(np.flatnonzero(blue)[0], np.flatnonzero(blue)[0] + 18))
    assert blue[first].sum() > 0.85 * blue.sum()


def test_a_second_run_finds_the_same(run: Callable[..., Any], model: Path, data: Path) -> None:
    first, second = (run("sensitivity", model, "--calib-data", data, "--json").out for _ in range(2))
    assert first == second


def test_the_model_and_the_data_stay_as_they_were(run: Callable[..., Any], model: Path, data: Path) -> None:
    before = model.read_bytes(), data.read_bytes(), sorted(path.name for path in model.parent.iterdir())
    assert run("sensitivity", model, "--calib-data", data, "--samples", "3").code == 0
    assert (model.read_bytes(), data.read_bytes(), sorted(path.name for path in model.parent.iterdir())) == before


def test_the_table_shows_the_worst_only(run: Callable[..., Any], model: Path, data: Path, bad: str) -> None:
    shown = run("sensitivity", model, "--calib-data", data, "--worst", "1").out
    assert bad in shown
    assert "c4" not in shown
    assert "the worst 1 of 5 layers" in shown


def test_excluded_layers_are_not_ranked(run: Callable[..., Any], model: Path, data: Path, bad: str) -> None:
    layers = run("sensitivity", model, "--calib-data", data, "--exclude", "re:.*/c3", "--json").json["layers"]
    assert bad not in {layer["layer"] for layer in layers}
    assert layers[0]["sqnr_db"] > 20


@pytest.mark.parametrize("method", ["auto", "mse"])
def test_ranges_come_from_the_method_asked_for(
    run: Callable[..., Any], model: Path, data: Path, bad: str, method: str
) -> None:
    plain = run("sensitivity", model, "--calib-data", data, "--json").json
    other = run("sensitivity", model, "--calib-data", data, "--method", method, "--json").json
    assert other["layers"][0]["layer"] == bad
    assert [layer["sqnr_db"] for layer in other["layers"]] != [layer["sqnr_db"] for layer in plain["layers"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "layers.txt"), "neither .json nor .csv"),
        (("--plot", "layers.gif"), "no .png"),
        (("--plot", "missing/layers.png"), "does not exist"),
        (("--plot", "calib.png"), "exists already"),
        (("--target", "abacus"), "no target 'abacus'"),
    ],
)
def test_outputs_that_cannot_be_are_refused_at_once(
    run: Callable[..., Any], model: Path, data: Path, arguments: tuple[str, ...], message: str
) -> None:
    (model.parent / "calib.png").write_bytes(b"")
    result = run("sensitivity", model, "--calib-data", data, *arguments)
    assert result.code == 2
    assert message in result.err
    assert "fix:" in result.err


def test_without_data_there_is_nothing_to_judge_by(run: Callable[..., Any], model: Path) -> None:
    result = run("sensitivity", model)
    assert (result.code, "no calibration data is given" in result.err) == (2, True)


def test_a_quantized_model_is_refused(run: Callable[..., Any], model: Path, data: Path, tmp_path: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "-o", "q.onnx").code == 0
    result = run("sensitivity", tmp_path / "q.onnx", "--calib-data", data)
    assert (result.code, "quantized already" in result.err) == (2, True)
    assert onnx.load(tmp_path / "q.onnx").graph.node


def test_long_labels_keep_their_ends_and_leave_room_for_bars(tmp_path: Path) -> None:
    path = tmp_path / "bars.png"
    draw_bars(path, "title", "subtitle", [Bar(label="x" * 400, length=1.0, figure="100 %")])
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    blue = np.flatnonzero((pixels == (0x2F, 0x6F, 0xB2)).all(axis=2).any(axis=0))
    assert blue[-1] - blue[0] > 500
