"""What each option of ``qtool quantize`` does to the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.calib.ranges import RANGE_METHODS
from tests.graphs_read import initializers_of, logits_of


def test_weights_get_one_scale_a_channel_or_one_a_tensor(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "--per-channel", "-o", "channel.onnx").code == 0
    assert run("quantize", model, "--calib-data", data, "--per-tensor", "-o", "tensor.onnx").code == 0
    assert initializers_of(Path("channel.onnx"))["w1_scale"].shape == (16,)
    assert initializers_of(Path("tensor.onnx"))["w1_scale"].shape == ()


@pytest.mark.parametrize(
    ("options", "activation", "weight"),
    [
        ((), np.uint8, np.int8),
        (("--weights-asymmetric",), np.uint8, np.int8),
        (("--weight-type", "u8", "--weights-asymmetric"), np.uint8, np.uint8),
        (("--activation-type", "s8"), np.int8, np.int8),
        (("--activation-type", "s8", "--activations-symmetric"), np.int8, np.int8),
        (("--activations-symmetric",), np.uint8, np.int8),
    ],
)
def test_each_scheme_stores_the_integers_it_says(
    run: Any,
    model: Path,
    data: Path,
    runtime: tuple[int, ...],
    options: tuple[str, ...],
    activation: type,
    weight: type,
) -> None:
    outcome = run("quantize", model, "--calib-data", data, *options, "--json")
    if runtime < (1, 27) and "--weights-asymmetric" in options:
        assert outcome.code == 2
        assert "fix: quantize with --per-tensor or without --weights-asymmetric" in outcome.err
        return
    assert outcome.code == 0, outcome.err
    stored = initializers_of(model.with_name("net.int8.onnx"))
    assert stored["image_zero_point"].dtype == activation
    assert stored["w1_quantized"].dtype == weight
    assert stored["w1_zero_point"].any() == ("--weights-asymmetric" in options)
    if "--activations-symmetric" in options:
        assert int(stored["image_zero_point"]) == (0 if activation is np.int8 else 128)
    assert outcome.json["outputs"][0]["sqnr_db"] > 20


@pytest.mark.parametrize("method", list(RANGE_METHODS))
def test_every_method_gives_a_usable_model(run: Any, model: Path, data: Path, method: str) -> None:
    outcome = run("quantize", model, "--calib-data", data, "--method", method, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["outputs"][0]["sqnr_db"] > 12


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("percentile", "--percentile", "95"),
        ("moving-average", "--spread", "3"),
        ("entropy", "--entropy-bins", "512"),
        ("mse", "--mse-candidates", "3"),
    ],
)
def test_each_method_parameter_has_an_effect(
    run: Any, model: Path, data: Path, method: str, option: str, value: str
) -> None:
    given = ("quantize", model, "--calib-data", data, "--method", method, "--max-float", "0")
    assert run(*given, "-o", "plain.onnx").code == 0
    assert run(*given, option, value, "-o", "set.onnx").code == 0
    plain, given = initializers_of(Path("plain.onnx")), initializers_of(Path("set.onnx"))
    scales = [name for name, array in plain.items() if name.endswith("_scale") and array.shape == ()]
    assert any(plain[name] != given[name] for name in scales)
    other = "minmax"
    refused = run("quantize", model, "--calib-data", data, "--method", other, option, value, "-o", "no.onnx")
    assert refused.code == 2
    assert f"{option} has no effect with --method {other}" in refused.err


def test_bias_correction_brings_the_means_back(run: Any, model: Path, data: Path) -> None:
    images = np.load(data)["image"]
    float_mean = logits_of(model, images).mean(axis=0)
    shifts = {}
    for option in ("--bias-correction", "--no-bias-correction"):
        given = ("--calib-data", data, "--effort", "fast", "--method", "minmax", "--no-gptq", "--per-tensor")
        assert run("quantize", model, *given, option, "-o", "out.onnx", "--force").code == 0
        shifts[option] = np.abs(logits_of(Path("out.onnx"), images).mean(axis=0) - float_mean).max()
    assert shifts["--bias-correction"] < 0.6 * shifts["--no-bias-correction"]


@pytest.mark.parametrize("pattern", ["/c2/Conv", "/c2/*", "re:/c[2]/Conv"])
def test_excluded_nodes_stay_float(run: Any, model: Path, data: Path, pattern: str) -> None:
    outcome = run("quantize", model, "--calib-data", data, "--exclude", pattern, "--json")
    assert outcome.code == 0, outcome.err
    skipped = {entry["node"]: entry["reason"] for entry in outcome.json["float_nodes"]}
    assert skipped["/c2/Conv"] == f"--exclude '{pattern}' matches it"
    assert "w2_quantized" not in initializers_of(model.with_name("net.int8.onnx"))


def test_only_included_operators_are_quantized(run: Any, model: Path, data: Path) -> None:
    outcome = run("quantize", model, "--calib-data", data, "--include", "Gemm", "--effort", "fast", "--json")
    assert outcome.code == 0, outcome.err
    stored = initializers_of(model.with_name("net.int8.onnx"))
    assert [name for name in stored if name.endswith("_quantized") and name.startswith("w")] == ["w4_quantized"]


@pytest.mark.parametrize("option", ["--include", "--exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(run: Any, model: Path, data: Path, option: str) -> None:
    outcome = run("quantize", model, "--calib-data", data, option, "/c2/Konv")
    assert outcome.code == 2
    assert f"{option} '/c2/Konv' matches no node" in outcome.err
    assert "did you mean '/c2/Conv'?" in outcome.err
