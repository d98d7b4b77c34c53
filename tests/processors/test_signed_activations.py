"""What runs on integers in a model for ARM is told as ARM fuses it, where this processor is an x86, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qtool.backends.execution import TARGET_KEY
from qtool.processor import integer_features

_NET = """g (float[n,3,12,12] x) => (float[n,10] y) {
    a = Conv <pads = [1,1,1,1]> (x, w0)
    r = Clip (a, low, high)
    d = Conv <pads = [1,1,1,1], group = 8> (r, w1)
    g = Sigmoid (d)
    s = Mul (d, g)
    e = Conv (s, w2)
    t = Add (e, r)
    l = LeakyRelu <alpha = 0.1> (t)
    p = GlobalAveragePool (l)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3, b3)
}"""


@pytest.fixture
def quantized(run: Any, save: Any, tmp_path: Path) -> Path:
    """The network for ARM."""
    r = np.random.default_rng(2)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (10, 8), "b3": (10,)}
    tensors = {name: r.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    save("net.onnx", _NET, low=np.float32(0), high=np.float32(6), **tensors)
    np.savez(tmp_path / "data.npz", x=r.normal(0, 1, (32, 3, 12, 12)).astype(np.float32))
    options = ("--target", "arm64", "--effort", "fast", "-o", "arm.onnx")
    outcome = run("quantize", "net.onnx", "--calib-data", "data.npz", *options)
    assert outcome.code == 0, outcome.err
    return tmp_path / "arm.onnx"


def test_everything_runs_on_integers_on_arm(run: Any, quantized: Path) -> None:
    told = run("verify", quantized, "--json").json
    assert told["integer_nodes"] == told["quantizable_nodes"] == 10
    assert {row["operator"] for row in told["operators"]} >= {"Conv", "Sigmoid", "Mul", "Add", "LeakyRelu", "Gemm"}


@pytest.mark.skipif(integer_features().family != "x86", reason="what x86 makes of it, only an x86 tells")
def test_on_x86_what_cannot_be_rewritten_to_unsigned_integers_stays_float(run: Any, quantized: Path) -> None:
    model = onnx.load(quantized)
    recorded = [entry for entry in model.metadata_props if entry.key == TARGET_KEY]
    assert [entry.value for entry in recorded] == ["arm64"]
    model.metadata_props.remove(recorded[0])
    onnx.save(model, "plain.onnx")
    told = run("verify", "plain.onnx", "--json").json
    assert told["integer_nodes"] < told["quantizable_nodes"] == 10
    assert "cannot rewrite as u8" in " ".join(miss["reason"] for miss in told["misses"])
