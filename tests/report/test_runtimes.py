"""The option that names what runs the models of a report."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("without_memory")

_NET = "g (float[n,12] x) => (float[n,6] y) { y = MatMul (x, w) }"


@pytest.fixture
def model(save: Any, tmp_path: Any) -> Any:
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=rng.normal(0, 1, (8, 12)).astype(np.float32))
    return save("net.onnx", _NET, w=rng.normal(0, 1, (12, 6)).astype(np.float32))


def test_a_runtime_that_does_not_exist_is_refused(run: Any, model: Any) -> None:
    outcome = run("report", model, model, "--data", "data.npz", "--runtime", "onnxruntme")
    assert outcome.code == 2
    assert "did you mean 'onnxruntime'" in outcome.err


def test_a_runtime_that_is_not_installed_is_refused_with_its_extra(
    run: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def without_openvino(name: str, package: str | None = None) -> Any:
        return None if name == "openvino" else found(name, package)

    monkeypatch.setattr("qtool.backends.openvino.installed.find_spec", without_openvino)
    outcome = run("report", model, model, "--data", "data.npz", "--runtime", "onnxruntime,openvino")
    assert outcome.code == 2
    assert "OpenVINO is not installed here" in outcome.err
    assert "pip install 'qtool-onnx[openvino]'" in outcome.err
    quantized = run("quantize", model, "--calib-data", "data.npz", "--target", "openvino", "--effort", "fast", "--json")
    assert quantized.code == 0, quantized.err
    assert "OpenVINO is not installed here" in quantized.json["judged_in"]
    assert "node by node" in quantized.err
    assert quantized.json["coverage"]["runtime"] == "onnxruntime"
    assert quantized.json["speedup"] is None


def test_the_default_is_onnxruntime_alone(run: Any, model: Any) -> None:
    assert run("quantize", model, "--calib-data", "data.npz", "--effort", "fast").code == 0
    report = run("report", model, "net.int8.onnx", "--data", "data.npz", "--no-latency", "--json").json
    (quantized,) = report["quantized_models"]
    assert (quantized["runtime"], quantized["misplaced"]) == ("onnxruntime", None)
    assert quantized["name"] == "net.int8.onnx"
