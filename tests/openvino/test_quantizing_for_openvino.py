"""Models for OpenVINO are quantized, verified and reported on in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytestmark = pytest.mark.slow

_CONV = "Conv<pads=[1,1,1,1]>"
_NET = f"a = {_CONV}(x, w1, b1) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, wg, bg)"
_FAST = ("--calib-data", "data.npz", "--target", "openvino", "--effort", "fast")


def _sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    signal, noise = np.square(expected.astype(np.float64)), np.square(expected.astype(np.float64) - found)
    return float(10 * np.log10(signal.sum() / noise.sum()))


def test_quantize_and_report_tell_what_openvino_returns(
    run: Any, network: Any, in_openvino: Any, tmp_path: Path
) -> None:
    path = network("net.onnx", _NET)
    outcome = run("quantize", path, *_FAST, "--batch-size", 1, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["judged_in"].startswith("OpenVINO 20")
    x, quantized = np.load(tmp_path / "data.npz")["x"], tmp_path / "net.int8.onnx"
    floats, integers = in_openvino(path, x), in_openvino(quantized, x)
    # Of batches of one, every tenth is held back.
    assert outcome.json["outputs"][0]["sqnr_db"] == pytest.approx(_sqnr(floats[9::10], integers[9::10]), abs=0.05)
    assert outcome.json["speedup"] > 0
    manifest = json.loads((tmp_path / "net.int8.manifest.json").read_text())
    assert manifest["options"]["judged_in"] == outcome.json["judged_in"]
    report = run("report", path, quantized, "--data", "data.npz", "--runtime", "openvino", "--rounds", 1, "--json")
    assert report.code == 0, report.err
    (model,) = report.json["quantized_models"]
    assert model["fidelity"][0]["sqnr_db"] == pytest.approx(_sqnr(floats, integers), abs=0.05)
    assert (model["runtime"], model["target"], model["misplaced"]) == ("openvino", "openvino", None)
    assert model["memory"]["peak_bytes"] > model["size_bytes"]
    assert report.json["versions"]["openvino"].startswith("20")
    assert "another machine" not in report.err


def test_runtimes_stand_side_by_side_each_with_its_own_float_model(run: Any, network: Any) -> None:
    network("net.onnx", _NET)
    assert run("quantize", "net.onnx", *_FAST).code == 0
    given = ("--data", "data.npz", "--runtime", "onnxruntime,openvino", "--rounds", 8)
    report = run("report", "net.onnx", "net.int8.onnx", *given, "--fail-if", "size_ratio > 90", "--json")
    assert report.code == 0, report.err
    here, floats, there = report.json["quantized_models"]
    assert [model["name"] for model in (here, floats, there)] == [
        "net.int8.onnx in onnxruntime",
        "net.onnx in OpenVINO",
        "net.int8.onnx in OpenVINO",
    ]
    assert [model["compared_with"] for model in (here, floats, there)] == [
        "net.onnx in onnxruntime",
        "net.onnx in onnxruntime",
        "net.onnx in OpenVINO",
    ]
    assert [model["is_float"] for model in (here, floats, there)] == [False, True, False]
    # Both runtimes compute what the float model means.
    assert floats["fidelity"][0]["sqnr_db"] > 90
    # A gate is about quantized models.
    assert [verdict["model"] for verdict in report.json["verdicts"]] == [here["name"], there["name"]]
    # It is for OpenVINO, and that is said of the other runtime, before any figure.
    assert here["misplaced"].startswith("its outputs are those of Q and DQ node by node")
    assert there["misplaced"] is None
    assert "net.int8.onnx in onnxruntime is for another machine" in report.err
    shown = run("report", "net.onnx", "net.int8.onnx", *given, "--profile")
    assert shown.out.index("Not on the runtime") < shown.out.index("latency")
    assert "Convolution" in shown.out


def test_a_model_for_a_processor_is_not_judged_on_openvino_in_silence(run: Any, network: Any) -> None:
    network("net.onnx", _NET)
    given = ("--calib-data", "data.npz", "--target", "x86", "--effort", "fast")
    assert run("quantize", "net.onnx", *given).code == 0
    report = run(
        "report", "net.onnx", "net.int8.onnx", "--data", "data.npz", "--runtime", "openvino", "--no-latency", "--json"
    )
    assert report.json["quantized_models"][0]["target"] == "x86"
    assert "it was quantized for --target x86; its outputs are those of OpenVINO's kernels" in report.err
    assert run("quantize", "net.onnx", *_FAST, "--force").code == 0
    assert "was quantized for --target openvino" in run("verify", "net.int8.onnx").err


def test_verify_says_why_nodes_stay_float(run: Any, network: Any) -> None:
    network("net.onnx", _NET)
    assert run("quantize", "net.onnx", *_FAST, "--exclude", "a").code == 0
    outcome = run("verify", "net.int8.onnx", "--target", "openvino", "--min-coverage", "1.0", "--json")
    assert outcome.code == 1
    assert "of the quantizable nodes run on integers" in outcome.err
    (miss,) = outcome.json["misses"]
    assert (miss["node"], miss["operator"]) == ("a", "Conv")
    assert "without Q and DQ" in miss["reason"]


def test_wrong_signs_are_named(run: Any, network: Any) -> None:
    network("net.onnx", f"a = {_CONV}(x, w1, b1) y = {_CONV}(a, w2, b2)")
    given = ("--calib-data", "data.npz", "--target", "openvino", "--effort", "fast", "--activation-type", "s8")
    assert run("quantize", "net.onnx", *given).code == 0
    misses = run("verify", "net.int8.onnx", "--target", "openvino", "--json").json["misses"]
    assert all("takes only u8 activations" in miss["reason"] for miss in misses)


def test_dynamic_quantization_is_float_there(run: Any, network: Any, in_openvino: Any, tmp_path: Path) -> None:
    text = "p = GlobalAveragePool(x) f = Flatten(p) m = MatMul(f, wd) y = Relu(m)"
    path = network("net.onnx", text)
    model = onnx.load(path)
    weight = np.random.default_rng(3).normal(0.0, 0.3, (16, 8)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "wd"))
    onnx.save(model, path)
    assert run("quantize", path, "--scheme", "dynamic", "-o", "dynamic.onnx").code == 0
    outcome = run("verify", "dynamic.onnx", "--target", "openvino", "--json")
    assert [miss["operator"] for miss in outcome.json["misses"]] == ["MatMulInteger"]
    assert "slower than the float model" in outcome.json["misses"][0]["reason"]
    refused = run("quantize", path, "--scheme", "dynamic", "--target", "openvino", "-o", "other.onnx")
    assert refused.code == 2
    assert not (tmp_path / "other.onnx").exists()
    # What it computes is right all the same.
    x = np.load(tmp_path / "data.npz")["x"]
    assert _sqnr(in_openvino(path, x), in_openvino(tmp_path / "dynamic.onnx", x)) > 25


def test_operators_that_openvino_lacks_are_named(run: Any, network: Any, tmp_path: Path) -> None:
    path = network("net.onnx", _NET)
    model = onnx.load(path)
    model.graph.node[1].op_type, model.graph.node[1].domain = "QuickGelu", "com.microsoft"
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.node[1].op_type = "NGramRepeatBlock"
    onnx.save(model, tmp_path / "odd.onnx")
    outcome = run("verify", "odd.onnx", "--target", "openvino")
    assert outcome.code == 2
    assert "OpenVINO does not load" in outcome.err
    assert "NGramRepeatBlock" in outcome.err
    assert "Traceback" not in outcome.err


def test_pairs_of_weights_hold_16_bits_without_vnni(run: Any, network: Any, tmp_path: Path) -> None:
    network("net.onnx", f"a = {_CONV}(x, w1, b1) r = Relu(a) y = {_CONV}(r, w2, b2)")
    given = ("--calib-data", "data.npz", "--target", "openvino-avx2", "--effort", "fast")
    assert run("quantize", "net.onnx", *given).code == 0
    model = onnx.load(tmp_path / "net.int8.onnx")
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == 3]
    for weight in (weight for weight in weights if weight.ndim == 4):
        rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1).astype(int)
        first, second = rows[:, ::2], rows[:, 1::2]
        assert (np.abs(first + second)[first * second > 0] <= 128).all()
    assert run("verify", "net.int8.onnx", "--target", "openvino-avx2").code == 0


def test_a_run_repeats_from_its_manifest(run: Any, network: Any, tmp_path: Path) -> None:
    network("net.onnx", _NET)
    assert run("quantize", "net.onnx", *_FAST).code == 0
    before = (tmp_path / "net.int8.onnx").read_bytes()
    manifest = tmp_path / "net.int8.manifest.json"
    assert json.loads(manifest.read_text())["versions"]["openvino"].startswith("20")
    outcome = run("quantize", "--locked", manifest, "--force")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "net.int8.onnx").read_bytes() == before
    document = json.loads(manifest.read_text())
    document["versions"]["openvino"] = "2020.1.0"
    manifest.write_text(json.dumps(document))
    refused = run("quantize", "--locked", manifest, "--force")
    assert refused.code == 2
    assert "not 2020.1.0" in refused.err
