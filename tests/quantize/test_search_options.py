"""What the options of the search do, as seen in the JSON report and in the files that are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from qtool.calib.granularity import PerChannel
from qtool.calib.grid import Grid
from qtool.weights.round_to_nearest import round_to_nearest

_LAYERS = ["/c1/Conv", "/c2/Conv", "/c3/Conv", "/logits/Gemm"]
# Everything that can be switched, in the order in which it is judged, with what its gain is called.
_SWITCHES = {
    "cle": "cross-layer equalization",
    "weight-clipping": "weight clipping",
    "gptq": "GPTQ",
    "bias-correction": "bias correction",
    "reconstruction": "layer reconstruction, biases",
}
_OFF = tuple(f"--no-{name}" for name in (*_SWITCHES, "smoothquant"))
# One range method and no layers in float: nothing changes but what a test asks for.
_PLAIN = ("--method", "minmax", "--max-float", "0")
# No weights change to fit sums of 16 bits.
_WIDE_SUMS = ("--target", "x86-vnni")


def _quantize(run: Callable[..., Any], model: Path, data: Path, name: str, *options: str) -> Any:
    result = run("quantize", model, "--calib-data", data, "-o", name, "--json", *options)
    assert result.code == 0, result.err
    return result.json


def _constants(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def _gains(report: Any) -> dict[str, dict[str, Any]]:
    return {gain["correction"]: gain for gain in report["gains"]}


def _sqnr_db(one: Path, other: Path, images: np.ndarray) -> float:
    expected, given = (
        ort.InferenceSession(str(path)).run(None, {"image": images})[0].astype(np.float64) for path in (one, other)
    )
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - given).sum()))


def _with_uneven_channels(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns weights of which some channels of r2 are very small, and are read with weights as large."""
    factors = np.geomspace(1, 200, 16).astype(np.float32)
    changed = dict(weights)
    changed["w2"] = weights["w2"] / factors[:, None, None, None]
    changed["b2"] = weights["b2"] / factors
    changed["w3"] = weights["w3"] * factors[None, :, None, None]
    return changed


def test_with_everything_off_weights_are_rounded_and_nothing_else(
    run: Callable[..., Any], model: Path, data: Path, weights: dict[str, np.ndarray]
) -> None:
    report = _quantize(run, model, data, "q.onnx", *_PLAIN, *_OFF, *_WIDE_SUMS)
    assert report["gains"] == []
    assert report["kept_float"] is None
    for key in ("equalized_tensors", "smoothed_tensors", "gptq_layers", "fitted_weights", "fitted_biases"):
        assert report[key] == [], key
    assert (report["corrected_biases"], report["chosen_methods"]) == ({}, {})
    constants = _constants(model.with_name("q.onnx"))
    for name in ("w1", "w2", "w3", "w4"):
        grid = Grid(bits=8, signed=True, symmetric=True)
        nearest = round_to_nearest(name, weights[name], grid, PerChannel(0))
        np.testing.assert_array_equal(constants[f"{name}_quantized"], nearest.integers)
    for name, layer in zip(("b1", "b2", "b3", "b4"), _LAYERS, strict=True):
        integers, scale = constants[f"{layer}_bias_quantized"], constants[f"{layer}_bias_scale"]
        assert (np.abs(integers * scale.astype(np.float64) - weights[name]) <= 0.501 * scale + 1e-7).all(), name


@pytest.mark.parametrize("switch", _SWITCHES)
def test_one_correction_alone_is_made_and_told(run: Callable[..., Any], model: Path, data: Path, switch: str) -> None:
    without = _quantize(run, model, data, "plain.onnx", *_PLAIN, *_OFF, *_WIDE_SUMS)
    others = tuple(option for option in _OFF if option != f"--no-{switch}")
    report = _quantize(run, model, data, "q.onnx", *_PLAIN, *others, f"--{switch}", *_WIDE_SUMS)
    marks = {
        "cle": report["equalized_tensors"],
        "gptq": report["gptq_layers"],
        "bias-correction": list(report["corrected_biases"]),
        "reconstruction": report["fitted_biases"],
    }
    assert {name for name, mark in marks.items() if mark} == ({switch} & set(marks))
    if switch in ("gptq", "bias-correction", "reconstruction"):
        assert marks[switch] == _LAYERS
    before, after = _constants(model.with_name("plain.onnx")), _constants(model.with_name("q.onnx"))
    integers = [name for name in before if name.startswith("w") and name.endswith("_quantized")]
    same = all(np.array_equal(before[name], after[name]) for name in integers)
    assert same is (switch in ("bias-correction", "reconstruction"))
    narrower = [(after[f"w{number}_scale"] < 0.999 * before[f"w{number}_scale"]).any() for number in (1, 2, 3, 4)]
    if switch == "weight-clipping":
        assert any(narrower)
        assert all((after[f"w{number}_scale"] <= before[f"w{number}_scale"]).all() for number in (1, 2, 3, 4))
    elif switch != "cle":
        assert not any(narrower)
    assert without["outputs"][0]["sqnr_db"] != report["outputs"][0]["sqnr_db"]


def test_what_is_in_doubt_is_judged_and_what_is_a_must_is_not(run: Callable[..., Any], model: Path, data: Path) -> None:
    doubted = _gains(_quantize(run, model, data, "a.onnx", *_PLAIN))
    assert set(_SWITCHES.values()) - {"weight clipping"} <= set(doubted)
    for gain in doubted.values():
        if gain["correction"] != "cross-layer equalization" and not gain["correction"].startswith(
            "layer reconstruction"
        ):
            # The benefit of doubt is a tenth of a decibel.
            assert not gain["kept"] or gain["after_db"] >= gain["before_db"] - 0.1, gain
    insisted = _gains(_quantize(run, model, data, "b.onnx", *_PLAIN, "--gptq", "--bias-correction"))
    assert not {"GPTQ", "bias correction", "weight clipping"} & set(insisted)


def test_the_figures_of_gains_are_those_of_the_files(
    run: Callable[..., Any], save_model: Callable[..., Path], network_text: str, weights: dict[str, np.ndarray]
) -> None:
    model = save_model("net.onnx", network_text, **_with_uneven_channels(weights))
    # Fewer samples than are judged by, in one batch, of which none is held back.
    images = np.random.default_rng(8).normal(0, 1, (16, 3, 16, 16)).astype(np.float32)
    np.savez(model.with_name("few.npz"), image=images)
    few = model.with_name("few.npz")
    # Changes of the float model are judged with corrected biases.
    off = [option for option in _OFF if option not in ("--no-cle", "--no-bias-correction")]
    options = (*_PLAIN, *off, "--bias-correction", "--batch-size", "16")
    report = _quantize(run, model, few, "q.onnx", *options)
    _quantize(run, model, few, "plain.onnx", *options, "--no-cle")
    (gain,) = report["gains"]
    assert (gain["correction"], gain["kept"]) == ("cross-layer equalization", True)
    before = _sqnr_db(model, model.with_name("plain.onnx"), images)
    after = _sqnr_db(model, model.with_name("q.onnx"), images)
    assert gain["before_db"] == pytest.approx(before, abs=0.01)
    assert gain["after_db"] == pytest.approx(after, abs=0.01)
    assert after > before + 5


def test_equalization_that_is_switched_off_leaves_uneven_channels(
    run: Callable[..., Any],
    save_model: Callable[..., Path],
    network_text: str,
    weights: dict[str, np.ndarray],
    data: Path,
    make_images: Callable[..., np.ndarray],
) -> None:
    model = save_model("net.onnx", network_text, **_with_uneven_channels(weights))
    even = _quantize(run, model, data, "even.onnx", "--max-float", "0")
    uneven = _quantize(run, model, data, "uneven.onnx", "--max-float", "0", "--no-cle", "--no-smoothquant")
    assert "r2" in even["equalized_tensors"]
    assert uneven["equalized_tensors"] == uneven["smoothed_tensors"] == []
    fresh = make_images(20, seed=9)
    figures = [_sqnr_db(model, model.with_name(name), fresh) for name in ("even.onnx", "uneven.onnx")]
    assert figures[0] > figures[1] + 5


def test_integers_that_are_fitted_without_any_other_rounding_are_written(
    run: Callable[..., Any], model: Path, data: Path
) -> None:
    options = (*_PLAIN, *(option for option in _OFF if option != "--no-reconstruction"), "--effort", "best")
    report = _quantize(run, model, data, "q.onnx", *options, "--reconstruction", "--no-learned-rounding")
    _quantize(run, model, data, "plain.onnx", *_PLAIN, *_OFF)
    before, after = _constants(model.with_name("plain.onnx")), _constants(model.with_name("q.onnx"))
    names = [name for name in before if name.startswith("w") and name.endswith("_quantized")]
    moved = {name.removesuffix("_quantized") for name in names if not np.array_equal(before[name], after[name])}
    assert moved
    assert moved == set(report["fitted_weights"])
    assert report["gptq_layers"] == []


def test_effort_says_what_is_looked_for(run: Callable[..., Any], model: Path, data: Path) -> None:
    fast = _quantize(run, model, data, "fast.onnx", "--effort", "fast")
    assert set(_gains(fast)) >= {"cross-layer equalization", "chosen ranges", "GPTQ", "bias correction"}
    assert not {"weight clipping", "layer reconstruction", "layer reconstruction, biases"} & set(_gains(fast))
    assert fast["kept_float"] is None
    # One method for all tensors.
    assert len(set(fast["chosen_methods"].values())) <= 2
    balanced = _gains(_quantize(run, model, data, "balanced.onnx"))
    assert {"cross-layer equalization", "chosen ranges", "GPTQ", "bias correction"} <= set(balanced)
    assert not {"weight clipping", "layer reconstruction"} & set(balanced)
    best = _quantize(run, model, data, "best.onnx", "--effort", "best")
    # Which layers save time, and whether others stay float, depends on the machine.
    changes = [found["change"] for found in best["held_back_evidence"] if found["change"] != "other float layers"]
    assert changes == ["other corrections and float layers", "layer reconstruction", "learned rounding"]


def test_speed_is_measured_with_data_alone(run: Callable[..., Any], model: Path, data: Path) -> None:
    assert _quantize(run, model, data, "q.onnx", "--effort", "fast")["speedup"] > 0
    assert run("calibrate", model, "--calib-data", data, "-o", "c.stats.npz").code == 0
    result = run("quantize", model, "--calib-stats", "c.stats.npz", "-o", "s.onnx", "--json")
    assert (result.code, result.json["speedup"], result.json["gains"]) == (0, None, [])


@pytest.mark.parametrize("effort", ["balanced", pytest.param("best", marks=pytest.mark.slow)])
def test_a_second_run_writes_the_same_bytes(run: Callable[..., Any], model: Path, data: Path, effort: str) -> None:
    reports = [_quantize(run, model, data, name, "--effort", effort) for name in ("a.onnx", "b.onnx")]
    assert model.with_name("a.onnx").read_bytes() == model.with_name("b.onnx").read_bytes()
    assert reports[0]["gains"] == reports[1]["gains"]
