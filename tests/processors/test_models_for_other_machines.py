"""Models for accelerators are judged by what Q and DQ mean, not by the fused kernels of this processor."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qtool.backends.execution import AS_IT_IS, NODE_BY_NODE
from qtool.backends.execution_choice import execution_for, execution_of, execution_of_file
from qtool.backends.targets import PRESETS
from qtool.runtime.session import Session

_ELSEWHERE = ("tensorrt", "qnn", *(() if find_spec("openvino") else ("openvino", "openvino-avx2")))
_NET = """g (float[n,12] x) => (float[n,6] y) {
    h = MatMul (x, w1)
    a = Add (h, b1)
    r = Relu (a)
    s = Softmax <axis = -1> (r)
    y = MatMul (s, w2)
}"""


@pytest.fixture
def model(save: Any, tmp_path: Path) -> Path:
    r = np.random.default_rng(5)
    x = r.normal(0, 1, (60, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    tensors = {"w1": r.normal(0, 0.5, (12, 32)), "b1": r.normal(0, 0.3, 32), "w2": r.normal(0, 1.0, (32, 6))}
    path: Path = save("net.onnx", _NET, **{name: array.astype(np.float32) for name, array in tensors.items()})
    return path


def _sqnr_of_meaning(floats: Path, quantized: Path, x: np.ndarray) -> float:
    """Runs both in onnxruntime, the quantized one without any rewriting, and returns the SQNR of ``y`` in dB."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (expected,) = ort.InferenceSession(floats).run(None, {"x": x})
    (found,) = ort.InferenceSession(quantized, options).run(None, {"x": x})
    noise = np.square(expected.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise))


@pytest.fixture
def levels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, str]]:
    """Notes of every session whether its model is quantized, and how far onnxruntime may rewrite it."""
    seen: list[tuple[bool, str]] = []
    opened = Session.__init__

    def noted(self: Session, given: Path | bytes, **options: Any) -> None:
        message = given if isinstance(given, bytes) else given.read_bytes()
        seen.append((b"QuantizeLinear" in message, options.get("level", "all")))
        opened(self, given, **options)

    monkeypatch.setattr(Session, "__init__", noted)
    return seen


@pytest.mark.parametrize("target", _ELSEWHERE)
def test_quantize_and_report_tell_what_the_file_means(run: Any, model: Path, tmp_path: Path, target: str) -> None:
    given = ("--calib-data", "data.npz", "--target", target, "--effort", "fast", "--batch-size", 1)
    outcome = run("quantize", model, *given, "--json")
    assert outcome.code == 0, outcome.err
    quantized, x = model.with_name("net.int8.onnx"), np.load(tmp_path / "data.npz")["x"]
    # Of batches of one, every tenth is held back.
    assert outcome.json["outputs"][0]["sqnr_db"] == pytest.approx(
        _sqnr_of_meaning(model, quantized, x[9::10]), abs=0.01
    )
    report = run("report", model, quantized, "--data", "data.npz", "--no-latency", "--json")
    assert report.code == 0, report.err
    (told,) = report.json["quantized_models"][0]["fidelity"]
    assert told["sqnr_db"] == pytest.approx(_sqnr_of_meaning(model, quantized, x), abs=0.01)
    assert "is for another machine" in report.err


@pytest.mark.parametrize("target", _ELSEWHERE)
def test_no_choice_of_layers_sees_a_fused_kernel(
    run: Any, model: Path, levels: list[tuple[bool, str]], target: str
) -> None:
    outcome = run("sensitivity", model, "--calib-data", "data.npz", "--target", target, "--json")
    assert outcome.code == 0, outcome.err
    judged = [level for is_quantized, level in levels if is_quantized]
    assert judged
    assert set(judged) == {"none"}


def test_a_model_says_what_it_is_for(run: Any, model: Path) -> None:
    for target in ("qnn", "x86"):
        path = model.with_name(f"{target}.onnx")
        given = ("--calib-data", "data.npz", "--target", target, "--effort", "fast", "-o", path)
        assert run("quantize", model, *given).code == 0
        told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert told.get("qtool.target") == target
        assert execution_of_file(path) == (NODE_BY_NODE if target == "qnn" else AS_IT_IS)
    assert run("dequantize", model.with_name("qnn.onnx"), "-o", "back.onnx").code == 0
    assert not onnx.load(model.with_name("back.onnx")).metadata_props


@pytest.mark.parametrize("saturate", [False, True])
def test_only_accelerators_are_run_node_by_node(monkeypatch: pytest.MonkeyPatch, saturate: bool) -> None:
    """And what OpenVINO would not add exactly on this processor."""
    monkeypatch.setattr("qtool.backends.openvino.backend.sums_saturate", lambda: saturate)
    elsewhere = {*_ELSEWHERE, "openvino"} if saturate else {*_ELSEWHERE}
    assert {name for name, scheme in PRESETS.items() if execution_for(scheme) == NODE_BY_NODE} == elsewhere
    known = {name for name in (*PRESETS, None, "unknown") if execution_of(name) == NODE_BY_NODE}
    assert known == {*_ELSEWHERE, "openvino", "openvino-avx2"}
