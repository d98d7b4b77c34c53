"""Operators are spelled out for integers only where integers flow from layer to layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs_read import counted_operators

_NETWORK = """
network (float[batch,3,8,8] image) => (float[batch,8] logits)
{
    c1 = Conv <pads = [1,1,1,1]> (image, w1)
    h1 = HardSwish (c1)
    up = ConvTranspose <strides = [2,2]> (h1, w2)
    r = Relu (up)
    f = Flatten (r)
    logits = Gemm (f, w3)
}
"""


@pytest.fixture
def model(save_model: Any) -> Path:
    generator = np.random.default_rng(2)
    shapes = {"w1": (64, 3, 3, 3), "w2": (64, 2, 2, 2), "w3": (2 * 256, 8)}
    weights = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    path: Path = save_model("net.onnx", _NETWORK, **weights)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", image=np.random.default_rng(4).normal(0, 1, (12, 3, 8, 8)).astype(np.float32))
    return tmp_path / "data.npz"


@pytest.mark.parametrize("options", [(), ("--target", "arm64"), ("--activation-type", "s8")])
def test_integers_between_layers_need_forms_that_have_kernels(run: Any, model: Path, data: Path, options: Any) -> None:
    result = run("quantize", model, "--calib-data", data, "--effort", "fast", "-o", "out.onnx", *options)
    assert result.code == 0, result.err
    operators = counted_operators("out.onnx")
    assert not operators.keys() & {"HardSwish", "ConvTranspose"}
    assert operators["DepthToSpace"] == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--scheme", "dynamic"),
        ("--activations-symmetric", "--effort", "fast"),
        ("--target", "tensorrt", "--effort", "fast"),
        ("--target", "qnn", "--effort", "fast"),
        ("--target", "openvino", "--effort", "fast"),
    ],
)
def test_others_keep_the_operators_that_they_have(run: Any, model: Path, data: Path, options: Any) -> None:
    result = run("quantize", model, "--calib-data", data, "-o", "out.onnx", *options)
    assert result.code == 0, result.err
    operators = counted_operators("out.onnx")
    assert (operators["HardSwish"], operators["ConvTranspose"]) == (1, 1)


def test_statistics_serve_the_scheme_that_they_were_gathered_for(run: Any, model: Path, data: Path) -> None:
    symmetric = ("--activations-symmetric",)
    assert run("calibrate", model, "--calib-data", data, "-o", "s.npz", *symmetric).code == 0
    assert run("quantize", model, "--calib-stats", "s.npz", "--effort", "fast", "-o", "a.onnx", *symmetric).code == 0
    refused = run("quantize", model, "--calib-stats", "s.npz", "--effort", "fast", "-o", "b.onnx")
    assert refused.code == 2
    assert "--activations-symmetric" in refused.err
