"""Models for ``--target arm64`` give out on ARM what they mean, and run there as qtool says that they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import pytest

from qtool.backends.onnxruntime_cpu.coverage import optimized_nodes
from qtool.runtime.session import Session
from tests.arm.emulated_runtime import EmulatedRuntime
from tests.arm.meaning import meaning

Feed = dict[str, npt.NDArray[Any]]

_IMAGES = """images (float[n,3,16,16] x) => (float[n,10] y) {
    a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w0, b0)
    c = Clip (a, low, high)
    d = Conv <pads = [1,1,1,1], group = 16> (c, w1, b1)
    g = Sigmoid (d)
    s = Mul (d, g)
    e = Conv (s, w2, b2)
    r = Add (e, c)
    l = LeakyRelu <alpha = 0.1> (r)
    m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (l)
    v = AveragePool <kernel_shape = [2,2], strides = [2,2]> (r)
    j = Concat <axis = 1> (m, v)
    u = Resize <mode = "nearest"> (j, , scales)
    o = Conv (u, w3, b3)
    p = GlobalAveragePool (o)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w4, b4)
}"""
_ATTENTION = """attention (float[n,6,16] x) => (float[n,6,16] y) {
    q0 = MatMul (x, wq)
    q = Add (q0, bq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    t = Transpose <perm = [0,2,1]> (k)
    s = MatMul (q, t)
    h = Mul (s, quarter)
    p = Softmax <axis = -1> (h)
    o = MatMul (p, v)
    r = Add (o, x)
    z = LayerNormalization <axis = -1> (r, gain, bias)
    i = MatMul (z, wi)
    e = Erf (i)
    one_more = Add (e, unit)
    g = Mul (i, one_more)
    w = MatMul (g, wo)
    y = Add (w, z)
}"""


def _arrays(**shapes: tuple[int, ...]) -> Feed:
    rng = np.random.default_rng(11)
    return {name: rng.normal(0.0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def _images() -> Feed:
    weights = {"w0": (16, 3, 3, 3), "w1": (16, 1, 3, 3), "w2": (16, 16, 1, 1), "w3": (24, 32, 1, 1), "w4": (10, 24)}
    biases = {name.replace("w", "b"): shape[:1] for name, shape in weights.items()}
    scales = np.array([1, 1, 2, 2], np.float32)
    return {**_arrays(**weights, **biases), "low": np.float32(0), "high": np.float32(6), "scales": scales}


def _attention() -> Feed:
    square = dict.fromkeys(("wq", "wk", "wv"), (16, 16))
    found = _arrays(**square, wi=(16, 32), wo=(32, 16), bq=(16,), gain=(16,), bias=(16,))
    return {**found, "quarter": np.float32(0.25), "unit": np.float32(1.0)}


@dataclass(frozen=True)
class Quantized:
    """A model for ARM.

    Attributes:
        path: the file.
        float_path: what it was made from.
        feed: samples that its ranges were not chosen on.
    """

    path: Path
    float_path: Path
    feed: Feed


@pytest.fixture(params=["images", "attention", "digits"])
def quantized(
    request: pytest.FixtureRequest, run: Callable[..., Any], save: Callable[..., Path], root: Path, tmp_path: Path
) -> Quantized:
    """Each of the models, quantized for ARM."""
    if request.param == "digits":
        weights, factory = root / "samples/mnist_cnn.pth", f"{root}/samples/mnist_cnn.py:build"
        model, data = tmp_path / "digits.onnx", root / "samples/digits_calib.npz"
        assert run("convert", weights, "--model", factory, "--calib-data", data, "-o", model).code == 0
        with np.load(root / "samples/digits_eval.npz") as stored:
            feed = {name: stored[name][:4] for name in stored.files if not name.startswith("_")}
    else:
        text, tensors, shape = (
            (_IMAGES, _images(), (3, 16, 16)) if request.param == "images" else (_ATTENTION, _attention(), (6, 16))
        )
        model = save(f"{request.param}.onnx", text, **{name: np.asarray(value) for name, value in tensors.items()})
        data = tmp_path / "calib.npz"
        samples = np.random.default_rng(12).normal(0.0, 1.0, (36, *shape)).astype(np.float32)
        np.savez(data, x=samples[:32])
        feed = {"x": samples[32:]}
    outcome = run("quantize", model, "--calib-data", data, "--target", "arm64", "--effort", "fast", "-o", "arm.onnx")
    assert outcome.code == 0, outcome.err
    return Quantized(tmp_path / "arm.onnx", model, feed)


def _decibels(signal: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    noise = float(np.sum((signal.astype(np.float64) - other) ** 2))
    return float("inf") if noise == 0 else 10 * float(np.log10(np.sum(signal.astype(np.float64) ** 2) / noise))


def test_outputs_are_what_the_model_means(machine: EmulatedRuntime, quantized: Quantized) -> None:
    (found,) = machine.run(quantized.path.read_bytes(), quantized.feed).values()
    (meant,) = meaning(quantized.path, quantized.feed).values()
    (floats,) = Session(quantized.float_path, threads=1).run(quantized.feed).values()
    # A rounding that falls to the other side of a step costs some of the 140 dB that float32 leaves.
    assert _decibels(meant, found) > _decibels(floats, found) + 15
    assert _decibels(floats, found) == pytest.approx(_decibels(floats, meant), abs=0.1)


def test_what_verify_says_of_it_is_what_runs_there(
    machine: EmulatedRuntime, quantized: Quantized, run: Callable[..., Any], tmp_path: Path
) -> None:
    machine.optimize(quantized.path.read_bytes(), tmp_path / "there.onnx", "extended")
    there = {node.name: node.op_type for node in onnx.load(tmp_path / "there.onnx").graph.node}
    with optimized_nodes(onnx_ir.load(quantized.path)) as here:
        assert {name: node.op_type for name, node in here.items()} == there
    told = run("verify", quantized.path, "--json").json
    # Moving operators keep their names on integers.
    kernels = Counter(kind for kind in there.values() if kind.startswith(("QLinear", "QGemm", "MatMulInteger")))
    assert 4 < kernels.total() <= told["integer_nodes"] <= told["quantizable_nodes"]
