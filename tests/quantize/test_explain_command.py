"""``qtool explain``: why one node or tensor is float, slow or inaccurate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def quantized(run: Any, model: Path, data: Path) -> Path:
    """The network with one layer left float, as net.int8.onnx."""
    outcome = run("quantize", model, "--calib-data", data, "--effort", "fast", "--exclude", "/c2/Conv")
    assert outcome.code == 0, outcome.err
    return model.with_name("net.int8.onnx")


@pytest.fixture
def constants(quantized: Path) -> dict[str, np.ndarray]:
    return {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(quantized).graph.initializer}


def _only_tensor(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err
    (tensor,) = outcome.json["tensors"]
    return tensor


def _decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / np.square(noise).sum()))


def test_a_node_on_integers_names_its_kernel(run: Any, quantized: Path) -> None:
    outcome = run("explain", quantized, "/c1/Conv", "--json")
    assert outcome.code == 0, outcome.err
    fate = outcome.json["node"]["fate"]
    assert (fate["kernel"], fate["integer"], fate["reason"]) == ("QLinearConv", True, None)
    roles = {tensor["tensor"]: tensor["role"] for tensor in outcome.json["tensors"]}
    assert roles == {"image": "input", "w1": "input weight", "/c1/Conv_bias": "input bias", "r1": "output"}
    assert "uint8 asymmetric, per tensor" in run("explain", quantized, "/c1/Conv").out


def test_a_node_that_was_excluded_names_the_option(run: Any, quantized: Path) -> None:
    outcome = run("explain", quantized, "/c2/Conv", "--json")
    node = outcome.json["node"]
    assert (node["fate"]["kernel"], node["fate"]["integer"]) == ("Conv", False)
    assert node["planned"] == "--exclude '/c2/Conv' matches it"
    assert outcome.json["advice"][0]["fix"] == "drop that --exclude"


def test_without_a_manifest_the_graph_alone_tells(run: Any, quantized: Path) -> None:
    quantized.with_suffix(".manifest.json").unlink()
    outcome = run("explain", quantized, "/c2/Conv", "--json")
    assert outcome.json["node"]["planned"] is None
    assert outcome.json["made_with"] is None
    assert "--max-float 0" in outcome.json["advice"][0]["fix"]


def test_a_manifest_of_another_model_is_left_aside(run: Any, quantized: Path, model: Path, data: Path) -> None:
    manifest = quantized.with_suffix(".manifest.json")
    document = json.loads(manifest.read_text())
    document["quantized_model"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(document))
    outcome = run("explain", quantized, "/c2/Conv", "--json")
    assert outcome.json["made_with"] is None
    assert "manifest of another model" in outcome.err


def test_a_relu_is_part_of_the_layer_in_front_of_it(run: Any, quantized: Path) -> None:
    fate = run("explain", quantized, "/r1/Relu", "--json").json["node"]["fate"]
    assert fate["absorbed"]
    assert fate["reason"] is None


def test_clipping_and_rounding_are_those_of_the_operator(
    run: Any, quantized: Path, constants: dict[str, np.ndarray], make_images: Any, tmp_path: Path
) -> None:
    images = make_images(8, seed=3) * 3  # further than the calibration went
    np.savez(tmp_path / "wide.npz", image=images)
    tensor = _only_tensor(run("explain", quantized, "image", "--data", "wide.npz", "--json"))
    scale, zero = float(constants["image_scale"]), int(constants["image_zero_point"])
    x = images.astype(np.float64)
    inside = np.clip(x, -zero * scale, (255 - zero) * scale)
    integers = np.clip(np.rint(images / np.float32(scale)) + zero, 0, 255)
    error = tensor["error"]
    assert error["values"] == images.size
    assert error["clipped_share"] == pytest.approx((np.abs(x - inside) > scale / 2).mean(), abs=1e-12)
    assert error["clipped_share"] > 0.001
    assert error["clipping_db"] == pytest.approx(_decibels(x, x - inside), abs=1e-3)
    assert error["sqnr_db"] == pytest.approx(_decibels(x, x - (integers - zero) * scale), abs=1e-3)
    assert error["rounding_db"] > error["clipping_db"]
    bars = error["histogram"]
    assert sum(bar["share"] for bar in bars) == pytest.approx(1)
    assert sum(bar["share"] for bar in bars if not bar["inside"]) > 0.001
    assert bars[0]["low"] == pytest.approx(images.min())
    assert bars[-1]["high"] == pytest.approx(images.max())


def test_clipped_values_are_advised_against(run: Any, quantized: Path, make_images: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", image=make_images(8, seed=3) * 3)
    outcome = run("explain", quantized, "/c1/Conv", "--data", "wide.npz")
    assert "of 'image' is clipped" in outcome.out
    assert "--method minmax" in outcome.out
    assert "out of range" in run("explain", quantized, "image", "--data", "wide.npz").out


def test_outliers_are_advised_against(run: Any, model: Path, make_images: Any, tmp_path: Path) -> None:
    images = make_images(20)
    images[0, 0, 0, 0] = 900.0
    np.savez(tmp_path / "outlier.npz", image=images)
    assert run("quantize", model, "--calib-data", "outlier.npz", "--effort", "fast").code == 0
    outcome = run("explain", "net.int8.onnx", "/c1/Conv", "--data", "outlier.npz", "--json")
    problems = {advice["problem"]: advice["fix"] for advice in outcome.json["advice"]}
    (fix,) = [fix for problem, fix in problems.items() if "outliers set the range of 'image'" in problem]
    assert "--smoothquant" in fix


def test_errors_add_up_along_the_graph(run: Any, quantized: Path, data: Path) -> None:
    first = _only_tensor(run("explain", quantized, "r1", "--data", data, "--json"))
    last = _only_tensor(run("explain", quantized, "r3", "--data", data, "--json"))
    assert first["sqnr_db"] > last["sqnr_db"] > 15
    # Its own rounding is only a part of what went wrong up to here.
    assert last["error"]["rounding_db"] > last["sqnr_db"]


def test_what_stays_float_shows_the_noise_that_reaches_it(run: Any, quantized: Path, data: Path) -> None:
    outcome = run("explain", quantized, "/c2/Conv", "--data", data, "--json")
    (output,) = [tensor for tensor in outcome.json["tensors"] if tensor["role"] == "output"]
    assert output["scheme"] is None or output["error"] is not None
    assert output["sqnr_db"] > 15
    assert outcome.json["samples"] == 32
    assert outcome.json["node"]["time"]["seconds"] > 0


def test_the_error_of_weights_is_about_what_rounding_them_cost(
    run: Any, model: Path, data: Path, weights: dict[str, np.ndarray]
) -> None:
    # No weights change to fit sums of 16 bits there.
    options = ("--target", "x86-vnni", "--effort", "fast", "--exclude", "/c2/Conv")
    assert run("quantize", model, "--calib-data", data, *options, "-o", "wide.onnx").code == 0
    tensor = _only_tensor(run("explain", "wide.onnx", "w3", "--json"))
    constants = {entry.name: numpy_helper.to_array(entry) for entry in onnx.load("wide.onnx").graph.initializer}
    stored = constants["w3_quantized"] * constants["w3_scale"].reshape(-1, 1, 1, 1)
    true = _decibels(weights["w3"], weights["w3"] - stored)
    assert tensor["error"]["rounding_db"] == pytest.approx(true, abs=1.0)
    assert tensor["scheme"] == "int8 symmetric, per channel on axis 0 (16)"
    assert tensor["error"]["clipped_share"] is None


@pytest.mark.parametrize("name", ["w3_quantized", "w3_DequantizeLinear", "w3_dequantized"])
def test_parts_of_a_pair_lead_to_its_tensor(run: Any, quantized: Path, name: str) -> None:
    assert _only_tensor(run("explain", quantized, name, "--json"))["tensor"] == "w3"


def test_the_end_of_a_name_will_do(run: Any, quantized: Path) -> None:
    assert run("explain", quantized, "c3/Conv", "--json").json["name"] == "/c3/Conv"
    outcome = run("explain", quantized, "/Conv")
    assert outcome.code == 2
    assert "3 names in the model end in '/Conv'" in outcome.err


def test_an_unknown_name_suggests_the_nearest(run: Any, quantized: Path) -> None:
    outcome = run("explain", quantized, "/c2/conf")
    assert outcome.code == 2
    assert "no node and no tensor '/c2/conf'" in outcome.err
    assert "'/c2/Conv'" in outcome.err


def test_a_layer_that_finds_its_ranges_as_it_runs_is_explained(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--scheme", "dynamic", "-o", "d.onnx").code == 0
    outcome = run("explain", "d.onnx", "logits", "--data", data, "--json")
    assert outcome.code == 0, outcome.err
    assert _only_tensor(outcome)["sqnr_db"] > 20


def test_only_what_has_integers_is_to_be_quantized_too(run: Any, save_model: Any, data: Path) -> None:
    text = """net (float[n,3,16,16] image) => (float[n,4,16,16] out)
    { a = Conv (image, w) b = Tanh (a) out = Conv (b, v) }"""
    generator = np.random.default_rng(0)
    arrays = {"w": (4, 3, 1, 1), "v": (4, 4, 1, 1)}
    stored = {name: generator.normal(0, 1, shape).astype(np.float32) for name, shape in arrays.items()}
    path = save_model("t.onnx", text, **stored)
    assert run("quantize", path, "--calib-data", data, "--effort", "fast").code == 0
    found = run("explain", "t.int8.onnx", "/b/Tanh", "--json").json
    assert found["node"]["fate"]["conversions"] >= 1
    assert ["Tanh" in advice["problem"] for advice in found["advice"]] == [True]


def test_an_operator_without_integers_says_so(run: Any, save_model: Any) -> None:
    path = save_model("plain.onnx", "plain (float[n,8] x) => (float[n,8] out) { out = Tanh (x) }")
    fate = run("explain", path, "out", "--json").json["node"]["fate"]
    assert fate["reason"] == "onnxruntime has no integer kernel for Tanh"
