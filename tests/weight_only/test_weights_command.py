"""``qtool quantize --scheme weights``, from the command line to what onnxruntime computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from qtool.runtime.session import Session

_NETWORK = """
net (float[n,t,64] x) => (float[n,t,32] y)
{
    h = MatMul (x, w1)
    a = Relu (h)
    g = MatMul (a, w2)
    b = Relu (g)
    y = MatMul (b, w3)
}
"""
_SHAPES = {"w1": (64, 96), "w2": (96, 96), "w3": (96, 32)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three products whose inputs are correlated, as net.onnx."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_NETWORK}')
    generator = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        array = (generator.standard_t(4, shape) * 0.1).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Samples of few directions, as data.npz."""
    generator = np.random.default_rng(1)
    directions = generator.normal(0, 1, (16, 64))
    x = generator.normal(0, 1, (48, 10, 16)) @ directions + generator.normal(0, 0.1, (48, 10, 64))
    np.savez(tmp_path / "data.npz", x=x.astype(np.float32))
    return tmp_path / "data.npz"


def _sqnr_db(model: Path, other: Path) -> float:
    generator = np.random.default_rng(2)
    directions = np.random.default_rng(1).normal(0, 1, (16, 64))
    x = (generator.normal(0, 1, (20, 10, 16)) @ directions).astype(np.float32)
    one, two = (Session(path).run({"x": x})["y"].astype(np.float64) for path in (model, other))
    return float(10 * np.log10(np.square(one).sum() / np.square(one - two).sum()))


def test_weights_alone_become_integers(run: Any, model: Path) -> None:
    result = run("quantize", model, "--scheme", "weights", "--json")
    assert result.code == 0, result.err
    report = result.json
    assert report["weight_only_nodes"] == ["/h", "/g", "/y"]
    assert (report["weight_method"], report["accuracy_level"], report["attempts"]) == ("mse", 0, [])
    assert report["scheme"] == "float activations, 4-bit asymmetric weights in blocks of 32"
    nodes = onnx.load(report["output"]).graph.node
    assert [node.op_type for node in nodes] == ["MatMulNBits", "Relu", "MatMulNBits", "Relu", "MatMulNBits"]
    assert report["quantized_bytes"] < 0.3 * report["float_bytes"]
    assert _sqnr_db(model, Path(report["output"])) > 12.0


def test_the_method_is_the_one_with_the_best_outputs(run: Any, model: Path, data: Path) -> None:
    result = run("quantize", model, "--calib-data", data, "--scheme", "weights", "--accuracy-level", "0", "--json")
    assert result.code == 0, result.err
    found = {attempt["method"]: attempt["sqnr_db"] for attempt in result.json["attempts"]}
    assert list(found)[:5] == ["rtn", "mse", "gptq", "awq", "awq-gptq"]
    # The best of them is rounded once more.
    assert list(found)[5:] in (["gptaq"], ["awq-gptaq"])
    assert list(found)[5].removesuffix("aq") == max(list(found)[:5], key=lambda name: found[name]).removesuffix("q")
    assert result.json["weight_method"] == max(found, key=lambda name: found[name])
    assert found["gptq"] == max(found["rtn"], found["mse"], found["gptq"])
    best = Path(result.json["output"])
    plain = run("quantize", model, "--scheme", "weights", "--weight-method", "rtn", "-o", "rtn.onnx", "--json")
    assert _sqnr_db(model, best) > _sqnr_db(model, Path(plain.json["output"])) + 3.0


def test_layers_make_up_for_the_noise_of_those_before_them(run: Any, model: Path, data: Path) -> None:
    with np.load(data) as file:
        draw = np.random.default_rng(3)
        # Samples between two of the others.
        pairs = draw.integers(0, len(file["x"]), (2, 400))
        np.savez("more.npz", x=(file["x"][pairs[0]] + file["x"][pairs[1]]) * np.float32(0.7))
    options = ("--calib-data", "more.npz", "--scheme", "weights", "--accuracy-level", "0", "--bits", "4", "--json")
    found = {}
    for method in ("gptq", "gptaq", "awq-gptq", "awq-gptaq"):
        result = run("quantize", model, *options, "--weight-method", method, "-o", f"{method}.onnx")
        assert result.code == 0, result.err
        assert result.json["weight_method"] == method
        found[method] = _sqnr_db(model, Path(result.json["output"]))
    assert found["gptaq"] > found["gptq"] + 0.5
    assert found["awq-gptaq"] > found["awq-gptq"] + 0.5
    manifest, first = Path("gptaq.manifest.json"), Path("gptaq.onnx").read_bytes()
    again = run("quantize", "--locked", manifest, "--force", "--json")
    assert again.code == 0, again.err
    assert Path("gptaq.onnx").read_bytes() == first


def test_more_bits_and_smaller_blocks_are_closer(run: Any, model: Path) -> None:
    found = {}
    for bits, block in ((2, 32), (4, 128), (4, 16), (8, 32)):
        options = ("--bits", bits, "--block-size", block, "-o", f"{bits}.{block}.onnx", "--json")
        result = run("quantize", model, "--scheme", "weights", *options)
        assert result.code == 0, result.err
        found[bits, block] = _sqnr_db(model, Path(result.json["output"]))
    assert found[2, 32] < found[4, 128] < found[4, 16] < found[8, 32]


def test_bits_are_mixed_for_an_accuracy(run: Any, model: Path, data: Path) -> None:
    options = ("--calib-data", data, "--scheme", "weights", "--accuracy-level", "0", "--json")
    sizes = {}
    for goal in (25.0, 40.0):
        result = run("quantize", model, *options, "--min-sqnr", goal, "-o", f"{goal}.onnx")
        assert result.code == 0, result.err
        assert result.json["attempts"][0]["sqnr_db"] >= goal
        sizes[goal] = result.json["quantized_bytes"]
    assert sizes[25.0] < sizes[40.0]
    mixed = result.json["mixed_bits"]
    assert [row["tensor"] for row in mixed] == ["w1", "w2", "w3"]
    assert {row["bits"] for row in mixed} <= {4, 8, None}
    assert all(row["noise_at_4_bits"] > 0.0 for row in mixed)


def test_bits_are_mixed_for_a_size(run: Any, model: Path, data: Path) -> None:
    options = ("--calib-data", data, "--scheme", "weights", "--accuracy-level", "0", "--json")
    float_bytes, found = model.stat().st_size, []
    for share in (0.22, 0.3, 0.6):
        result = run("quantize", model, *options, "--max-size", f"{share:.0%}", "-o", f"{share}.onnx")
        assert result.code == 0, result.err
        # Names, attributes and the function that unpacks weigh more in a file this small than they would.
        assert result.json["quantized_bytes"] <= share * float_bytes + 3000
        found.append(result.json["attempts"][0]["sqnr_db"])
    assert found[0] < found[1] < found[2]
    result = run("quantize", model, *options, "--max-size", "0.01MB", "-o", "none.onnx")
    assert result.code == 1
    assert "with the fewest bits the model takes" in result.err
    assert not Path("none.onnx").exists()


def test_other_runtimes_read_the_standard_form(run: Any, model: Path) -> None:
    result = run("quantize", model, "--scheme", "weights", "--format", "qdq", "--json")
    assert result.code == 0, result.err
    quantized = onnx.load(result.json["output"])
    onnx.checker.check_model(quantized, full_check=True)
    assert {entry.domain: entry.version for entry in quantized.opset_import}[""] >= 21
    assert {node.domain for node in quantized.graph.node} == {""}
    kinds = {tensor.data_type for tensor in quantized.graph.initializer if tensor.name.endswith("_quantized")}
    assert kinds == {onnx.TensorProto.UINT4}
    packed = run("quantize", model, "--scheme", "weights", "-o", "packed.onnx", "--json")
    x = np.random.default_rng(2).normal(0, 1, (4, 10, 64)).astype(np.float32)
    # onnxruntime makes MatMulNBits of some of them, with 8-bit products; as they stand they are exact.
    found = Session(Path(result.json["output"]), level="none").run({"x": x})["y"]
    np.testing.assert_allclose(found, Session(Path(packed.json["output"])).run({"x": x})["y"], atol=1e-4)


def test_dequantizing_gives_floats_back(run: Any, model: Path) -> None:
    report = run("quantize", model, "--scheme", "weights", "--bits", "8", "--json").json
    result = run("dequantize", report["output"], "-o", "float.onnx", "--json")
    assert result.code == 0, result.err
    assert {node.domain for node in onnx.load("float.onnx").graph.node} == {""}
    x = np.random.default_rng(2).normal(0, 1, (4, 10, 64)).astype(np.float32)
    floats, integers = (Session(Path(path)).run({"x": x})["y"] for path in ("float.onnx", report["output"]))
    np.testing.assert_allclose(floats, integers, atol=1e-4)


def test_a_locked_run_has_the_same_bytes(run: Any, model: Path, data: Path) -> None:
    first = run("quantize", model, "--calib-data", data, "--scheme", "weights", "--json").json
    manifest = json.loads(Path(first["manifest"]).read_text(encoding="utf-8"))
    lock, level = manifest["lock"]["weights"], first["accuracy_level"]
    assert lock["method"] == first["weight_method"]
    # One level for all of them, or the layers that have another.
    assert lock["level"] == level if level is not None else lock["integer_layers"] == first["integer_layers"]
    wanted = Path(first["output"]).read_bytes()
    again = run("quantize", "--locked", first["manifest"], "--force", "--json")
    assert again.code == 0, again.err
    assert Path(first["output"]).read_bytes() == wanted


def test_a_plan_is_shown_without_writing(run: Any, model: Path, tmp_path: Path) -> None:
    result = run("quantize", model, "--scheme", "weights", "--dry-run", "--exclude", "/g", "--json")
    assert [row["tensor"] for row in result.json["tensors"]] == ["w1", "w3"]
    assert [skip["node"] for skip in result.json["float_nodes"]] == ["/g"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--bits", "3"), "there are no weights of 3 bits"),
        (("--block-size", "48"), "there are no blocks of 48"),
        (("--per-channel", "--block-size", "32"), "--per-channel and --block-size exclude each other"),
        (("--per-tensor",), "--per-tensor has no effect with --scheme weights"),
        (("--bits", "2", "--format", "qdq"), "reads no weights of 2 bits"),
        (("--accuracy-level", "3"), "there is no accuracy level '3'"),
        (("--accuracy-level", "4", "--format", "qdq"), "--accuracy-level is for --format nbits"),
        (("--weight-method", "hqq"), "there is no weight method 'hqq'"),
        (("--weight-method", "gptq"), "--weight-method gptq needs calibration data"),
        (("--max-size", "35%"), "--max-size needs calibration data"),
        (("--max-size", "35%", "--min-sqnr", "20"), "--min-sqnr and --max-size exclude each other"),
        (("--bits", "4", "--min-sqnr", "20"), "--min-sqnr and --bits exclude each other"),
        (("--gptq",), "--gptq has no effect with --scheme weights"),
        (("--target", "tensorrt"), "--scheme weights is for onnxruntime's CPU provider"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Any, model: Path, options: tuple[str, ...], problem: str) -> None:
    result = run("quantize", model, "--scheme", "weights", *options)
    assert result.code == 2
    assert problem in " ".join(result.err.split())


@pytest.mark.parametrize("size", ["large", "-3MB", "0MB", "nanMB"])
def test_sizes_that_make_no_sense_are_refused(run: Any, model: Path, data: Path, size: str) -> None:
    result = run("quantize", model, "--calib-data", data, "--scheme", "weights", "--max-size", size)
    assert result.code == 2
    assert "--max-size" in result.err


def test_options_for_weights_alone_are_refused_elsewhere(run: Any, model: Path, data: Path) -> None:
    result = run("quantize", model, "--calib-data", data, "--bits", "4")
    assert result.code == 2
    assert "--bits has no effect with --scheme static" in " ".join(result.err.split())


def test_a_quantized_model_is_not_quantized_again(run: Any, model: Path) -> None:
    first = run("quantize", model, "--scheme", "weights", "--json").json
    result = run("quantize", first["output"], "--scheme", "weights", "-o", "twice.onnx")
    assert result.code == 2
    assert "the model is quantized already" in result.err
