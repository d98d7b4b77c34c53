"""``qtool quantize --scheme dynamic`` and ``--dynamic``, from the command line to what onnxruntime computes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.runtime.session import Session
from tests.graphs_read import counted_operators, initializers_of

_ENCODER = """
encoder (float[n,t,16] x) => (float[n,t,8] out)
{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    kt = Transpose <perm = [0,2,1]> (k)
    s = MatMul (q, kt)
    p = Softmax <axis = -1> (s)
    v = MatMul (p, x)
    h = MatMul (v, w1)
    a = Add (h, b1)
    r = Relu (a)
    m = MatMul (r, w2)
    out = Add (m, b2)
}
"""
_LAYERS = ["/q/MatMul", "/k/MatMul", "/h/MatMul", "/m/MatMul"]


@pytest.fixture
def encoder(save_model: Any) -> Path:
    """A small encoder of MatMuls, as encoder.onnx."""
    generator = np.random.default_rng(8)
    shapes = {"wq": (16, 16), "wk": (16, 16), "w1": (16, 32), "b1": (32,), "w2": (32, 8), "b2": (8,)}
    arrays = {name: generator.normal(0, 0.25, shape).astype(np.float32) for name, shape in shapes.items()}
    path: Path = save_model("encoder.onnx", _ENCODER, **arrays)
    return path


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """Forty sequences for the encoder, as sequences.npz."""
    path = tmp_path / "sequences.npz"
    np.savez(path, x=np.random.default_rng(3).normal(0, 1, (40, 6, 16)).astype(np.float32))
    return path


def _kernels(path: Path) -> Counter[str]:
    optimized = path.with_suffix(".optimized.onnx")
    Session(path, threads=1, level="extended", optimized_to=optimized)
    return counted_operators(optimized)


def _sqnr_db(reference: Path, other: Path, x: np.ndarray) -> float:
    exact = Session(reference).run({"x": x})["out"].astype(np.float64)
    noise = exact - Session(other).run({"x": x})["out"]
    return float(10 * np.log10(np.square(exact).sum() / np.square(noise).sum()))


def test_no_data_is_needed(run: Any, encoder: Path) -> None:
    outcome = run("quantize", encoder, "--scheme", "dynamic", "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert report["scheme"] == "u8 dynamic activations, s8 symmetric per-channel weights"
    assert report["dynamic_nodes"] == _LAYERS
    assert report["compared_on"] == "random inputs, which are not representative"
    assert [row for row in report["coverage"]["operators"] if row["operator"] == "MatMulInteger"] == [
        {"operator": "MatMulInteger", "integer": 4, "total": 4}
    ]
    quantized = Path("encoder.int8.onnx")
    assert counted_operators(quantized)["DynamicQuantizeLinear"] == 4
    kernels = _kernels(quantized)
    assert (kernels["DynamicQuantizeMatMul"], kernels["MatMulIntegerToFloat"], kernels["MatMulInteger"]) == (2, 2, 0)
    x = np.random.default_rng(4).normal(0, 1, (9, 5, 16)).astype(np.float32)
    assert _sqnr_db(encoder, quantized, x) > 25


def test_data_is_what_the_result_is_compared_on(run: Any, encoder: Path, sequences: Path) -> None:
    alone = run("quantize", encoder, "--scheme", "dynamic", "-o", "alone.onnx")
    assert alone.code == 0, alone.err
    assert "give --calib-data to compare it" in alone.out
    beside = run("quantize", encoder, "--scheme", "dynamic", "--calib-data", sequences, "-o", "beside.onnx")
    assert beside.code == 0, beside.err
    assert "Compared with the float model" in beside.out
    assert Path("alone.onnx").read_bytes() == Path("beside.onnx").read_bytes()


def test_the_same_dynamic_run_writes_the_same_bytes(run: Any, encoder: Path) -> None:
    digests = []
    for _ in range(2):
        assert run("quantize", encoder, "--scheme", "dynamic", "--force").code == 0
        written = (Path("encoder.int8.onnx"), Path("encoder.int8.manifest.json"))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in written])
    assert digests[0] == digests[1]


def test_the_manifest_says_what_was_done(run: Any, encoder: Path, sequences: Path) -> None:
    arguments = ("--scheme", "dynamic", "--per-tensor", "--calib-data", sequences)
    assert run("quantize", encoder, *arguments).code == 0
    manifest = json.loads(Path("encoder.int8.manifest.json").read_text())
    assert manifest["options"]["scheme"] == "u8 dynamic activations, s8 symmetric per-tensor weights"
    assert manifest["inputs"]["calib_data"]["path"] == "sequences.npz"
    assert manifest["quantized"]["dynamic_nodes"] == 4
    assert manifest["figures"]["sqnr_db:out"] > 20
    report = run("report", "--json", "--no-latency")
    assert report.code == 0, report.err
    assert report.json["figures"]["sqnr_db"] > 20


def test_a_dynamic_dry_run_writes_nothing(run: Any, encoder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    outcome = run("quantize", encoder, "--scheme", "dynamic", "--dry-run", "--weight-type", "u8", "--json")
    assert outcome.code == 0, outcome.err
    assert {(row["tensor"], row["kind"], row["type"]) for row in outcome.json["tensors"]} == {
        (name, "weight", "u8") for name in ("wq", "wk", "w1", "w2")
    }
    assert [row["node"] for row in outcome.json["integer_nodes"]] == _LAYERS
    reasons = {row["node"]: row["reason"] for row in outcome.json["float_nodes"]}
    assert reasons == dict.fromkeys(("/s/MatMul", "/v/MatMul"), "its weights are computed at run time")
    table = run("quantize", encoder, "--scheme", "dynamic", "--dry-run")
    assert "per-channel, axis 1" in table.out
    assert "4 MatMul" in table.out
    assert sorted(tmp_path.iterdir()) == before


def test_patterns_choose_the_dynamic_layers(run: Any, encoder: Path) -> None:
    chosen = run("quantize", encoder, "--scheme", "dynamic", "--exclude", "/m/*", "--dry-run", "--json")
    assert [row["node"] for row in chosen.json["integer_nodes"]] == _LAYERS[:3]
    assert any(row["reason"] == "--exclude '/m/*' matches it" for row in chosen.json["float_nodes"])
    chosen = run("quantize", encoder, "--scheme", "dynamic", "--include", "re:/[qk]/.*", "--dry-run", "--json")
    assert [row["node"] for row in chosen.json["integer_nodes"]] == _LAYERS[:2]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--method", "mse"), "--method has no effect with --scheme dynamic"),
        (("--percentile", "99"), "--percentile has no effect"),
        (("--calib-stats", "some.npz"), "--calib-stats has no effect"),
        (("--activation-type", "u8"), "--activation-type has no effect"),
        (("--activations-symmetric",), "--activations-symmetric has no effect"),
        (("--activations-asymmetric",), "--activations-asymmetric has no effect"),
        (("--no-bias-correction",), "--no-bias-correction has no effect"),
        (("--dynamic", "MatMul"), "--dynamic has no effect"),
        (("--exclude", "MatMul"), "nothing in the model can be quantized dynamically (MatMul: --exclude 'MatMul'"),
        (("--include", "MatMull"), "--include 'MatMull' matches no node of the model"),
        (("-o", "out.bin"), "the output out.bin does not end in .onnx"),
        (("-o", "encoder.onnx", "--force"), "the output is the input"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Any, encoder: Path, options: tuple[str, ...], problem: str) -> None:
    outcome = run("quantize", encoder, "--scheme", "dynamic", *options)
    assert outcome.code == 2, outcome.out
    assert problem in " ".join(outcome.err.split())
    assert "fix:" in outcome.err
    assert not Path("encoder.int8.onnx").exists()


def test_static_settings_stand_aside_for_a_dynamic_run(run: Any, encoder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "qtool.toml"
    settings.write_text('[quantize]\nmethod = "mse"\n')
    assert run("quantize", encoder, "--scheme", "dynamic").code == 0
    settings.write_text('[quantize]\nmethod = "mse"\nscheme = "dynamic"\n')
    outcome = run("quantize", encoder, "--force", as_given=True)
    assert outcome.code == 2
    assert "--method has no effect with --scheme dynamic" in outcome.err


def test_a_network_of_convolutions_has_nothing_to_gain(run: Any, save_model: Any) -> None:
    text = "conv (float[n,3,8,8] x) => (float[n,4,6,6] out) { c = Conv (x, w)  out = Relu (c) }"
    path = save_model("conv.onnx", text, w=np.ones((4, 3, 3, 3), np.float32))
    outcome = run("quantize", path, "--scheme", "dynamic")
    assert outcome.code == 2
    assert "ConvInteger, is slower than float" in " ".join(outcome.err.split())
    assert "--scheme static" in outcome.err


def test_a_dynamic_model_is_not_quantized_again(run: Any, encoder: Path, sequences: Path) -> None:
    assert run("quantize", encoder, "--scheme", "dynamic").code == 0
    for options in (("--scheme", "dynamic"), ("--calib-data", sequences)):
        outcome = run("quantize", "encoder.int8.onnx", *options, "-o", "twice.onnx")
        assert outcome.code == 2
        assert "the model is quantized already" in outcome.err


def test_verify_counts_dynamic_layers(run: Any, encoder: Path) -> None:
    arguments = ("--scheme", "dynamic", "--exclude", "re:/[sv]/.*")
    assert run("quantize", encoder, *arguments).code == 0
    outcome = run("verify", "encoder.int8.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert (outcome.json["integer_nodes"], outcome.json["quantizable_nodes"]) == (4, 6)
    assert {miss["node"] for miss in outcome.json["misses"]} == {"/s/MatMul", "/v/MatMul"}


def test_dequantize_gives_the_products_their_floats_back(run: Any, encoder: Path) -> None:
    arguments = ("--scheme", "dynamic", "--weights-asymmetric", "--target", "x86-vnni")
    assert run("quantize", encoder, *arguments).code == 0
    outcome = run("dequantize", "encoder.int8.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["removed_nodes"] == 4
    back = Path("encoder.float.onnx")
    assert counted_operators(back) == counted_operators(encoder)
    quantized, floats = initializers_of(Path("encoder.int8.onnx")), initializers_of(back)
    for name in ("wq", "wk", "w1", "w2"):
        integers = quantized[f"{name}_quantized"].astype(np.float32)
        zero_point = quantized.get(f"{name}_zero_point", np.zeros(1)).astype(np.float32)
        np.testing.assert_array_equal(floats[name], (integers - zero_point) * quantized[f"{name}_scale"])
    again = run("quantize", back, *arguments, "-o", "again.onnx")
    assert again.code == 0, again.err
    for name, array in initializers_of(Path("again.onnx")).items():
        np.testing.assert_allclose(array, quantized[name], rtol=1e-6)


def test_dequantize_unties_nothing(run: Any, save_model: Any) -> None:
    generator = np.random.default_rng(6)
    text = """tied (float[n,16] x) => (float[n,16] out)
        { a = Gemm (x, w, b)  r = Tanh (a)  out = Gemm <transB = 1> (r, w, c) }"""
    shapes = {"w": (16, 8), "b": (8,), "c": (16,)}
    path = save_model("tied.onnx", text, **{k: generator.normal(0, 1, s).astype(np.float32) for k, s in shapes.items()})
    assert run("quantize", path, "--scheme", "dynamic").code == 0
    assert run("dequantize", "tied.int8.onnx").code == 0
    stored = initializers_of(Path("tied.float.onnx"))
    assert [name for name, array in stored.items() if array.size == 128] == ["w"]
    x = generator.normal(0, 1, (20, 16)).astype(np.float32)
    assert _sqnr_db(path, Path("tied.float.onnx"), x) > 30


@pytest.mark.parametrize("weights_only", [True, False])
def test_dynamic_models_of_onnxruntime_are_understood(run: Any, encoder: Path, weights_only: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"MatMulConstBOnly": weights_only}
    quantize_dynamic(encoder, "theirs.onnx", per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    outcome = run("verify", "theirs.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["integer_nodes"] == (4 if weights_only else 6)
    back = run("dequantize", "theirs.onnx", "-o", "back.onnx")
    assert back.code == 0, back.err
    assert counted_operators(Path("back.onnx")) == counted_operators(encoder)
    x = np.random.default_rng(4).normal(0, 1, (9, 5, 16)).astype(np.float32)
    assert _sqnr_db(encoder, Path("back.onnx"), x) > 30


def test_single_layers_are_dynamic_in_a_static_model(run: Any, encoder: Path, sequences: Path) -> None:
    outcome = run("quantize", encoder, "--calib-data", sequences, "--dynamic", "re:/[qk]/.*", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["dynamic_nodes"] == _LAYERS[:2]
    assert not set(_LAYERS[:2]) & {row["node"] for row in outcome.json["float_nodes"]}
    quantized = Path("encoder.int8.onnx")
    assert counted_operators(quantized)["MatMulInteger"] == 2
    kernels = _kernels(quantized)
    assert kernels["MatMulIntegerToFloat"] >= 2
    assert kernels["MatMulInteger"] == 0
    assert outcome.json["coverage"]["integer_nodes"] >= 6
    with np.load(sequences) as arrays:
        assert _sqnr_db(encoder, quantized, arrays["x"]) > 20
    manifest = json.loads(Path("encoder.int8.manifest.json").read_text())
    assert manifest["options"]["dynamic"] == ["re:/[qk]/.*"]
    assert manifest["quantized"]["dynamic_nodes"] == 2
    back = run("dequantize", quantized, "--json")
    assert back.code == 0, back.err
    assert not [
        name for name in counted_operators(Path("encoder.float.onnx")) if "Quantize" in name or "Integer" in name
    ]


def test_layers_that_share_weights_are_dynamic_together(run: Any, save_model: Any) -> None:
    text = """tied (float[n,t,8] x) => (float[n,t,8] out)
        { a = MatMul (x, w)  b = MatMul (a, v)  c = Tanh (b)  out = MatMul (c, w) }"""
    generator = np.random.default_rng(6)
    arrays = {name: generator.normal(0, 0.4, (8, 8)).astype(np.float32) for name in "wv"}
    path = save_model("tied.onnx", text, **arrays)
    outcome = run("quantize", path, "--dynamic", "/out/*", "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["dynamic_nodes"] == ["/a/MatMul", "/out/MatMul"]
    shared = next(row for row in outcome.json["tensors"] if row["tensor"] == "w")
    assert shared["note"] == "shared by 2 nodes, activations quantized at run time"
    assert [row["node"] for row in outcome.json["integer_nodes"]] == ["/b/MatMul", "/a/MatMul", "/out/MatMul"]


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (("Softmax",), "no node that --dynamic matches can be quantized dynamically"),
        (("/s/*",), "can be quantized dynamically (MatMul: its weights are computed at run time)"),
        (("MatMull",), "--dynamic 'MatMull' matches no node of the model"),
    ],
)
def test_a_dynamic_pattern_without_effect_is_refused(
    run: Any, encoder: Path, sequences: Path, patterns: tuple[str, ...], problem: str
) -> None:
    options = [part for pattern in patterns for part in ("--dynamic", pattern)]
    outcome = run("quantize", encoder, "--calib-data", sequences, *options)
    assert outcome.code == 2
    assert problem in " ".join(outcome.err.split())


def test_a_static_scheme_without_a_static_layer_is_refused(run: Any, save_model: Any) -> None:
    text = "one (float[n,t,8] x) => (float[n,t,8] out) { a = MatMul (x, w)  out = Tanh (a) }"
    path = save_model("one.onnx", text, w=np.eye(8, dtype=np.float32))
    outcome = run("quantize", path, "--dynamic", "MatMul", "--dry-run")
    assert outcome.code == 2
    assert "--dynamic leaves no node for the static scheme" in outcome.err
    assert "--scheme dynamic" in outcome.err
