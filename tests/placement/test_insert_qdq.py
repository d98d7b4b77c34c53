"""The quantized graph loads, runs on integers, and computes what quantization by hand computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from qtool.backends.onnxruntime_cpu.exact_sums import exact_form, with_exact_sums
from qtool.backends.targets import PRESETS
from qtool.calib.grid import Grid
from qtool.errors import RuntimeRefusedError
from qtool.schemes import Scheme

Arrays = Callable[..., npt.NDArray[np.float32]]
Prepared = Callable[..., ir.Model]
Quantized = Callable[..., ir.Model]
Feed = dict[str, npt.NDArray[Any]]


@pytest.fixture
def residual(prepared: Prepared, random_array: Arrays) -> ir.Model:
    return prepared(
        """g (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1]> (b, w2)
            d = Add (c, b)
            e = Clip (d, low, high)
            f = MaxPool <kernel_shape = [2,2], strides = [2,2]> (e)
            g = GlobalAveragePool (f)
            h = Flatten (g)
            y = Gemm <transB = 1> (h, w3, b3)
        }""",
        w1=random_array(4, 3, 3, 3),
        b1=random_array(4),
        w2=random_array(4, 4, 3, 3),
        low=np.float32(0.0),
        high=np.float32(6.0),
        w3=random_array(5, 4),
        b3=random_array(5),
    )


@pytest.fixture
def image_feeds() -> list[Feed]:
    rng = np.random.default_rng(5)
    return [{"x": rng.normal(0.0, 1.0, (2, 3, 8, 8)).astype(np.float32)} for _ in range(8)]


def test_the_quantized_graph_is_valid_and_keeps_its_interface(
    residual: ir.Model, quantized: Quantized, image_feeds: list[Feed]
) -> None:
    before = ir.to_proto(residual)
    after = ir.to_proto(quantized(residual, image_feeds))
    onnx.checker.check_model(after, full_check=True)
    assert [str(value) for value in after.graph.input] == [str(value) for value in before.graph.input]
    assert [str(value) for value in after.graph.output] == [str(value) for value in before.graph.output]
    names = [node.name for node in after.graph.node]
    assert len(set(names)) == len(names)


def test_a_residual_network_runs_on_integer_kernels_only(
    residual: ir.Model,
    quantized: Quantized,
    image_feeds: list[Feed],
    tmp_path: Path,
    kernels_of: Any,
) -> None:
    assert kernels_of(quantized(residual, image_feeds), tmp_path) == {
        "QuantizeLinear": 1,
        "QLinearConv": 2,
        "QLinearAdd": 1,
        "MaxPool": 1,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
    }


def test_the_quantized_graph_stays_near_the_float_one(
    residual: ir.Model,
    quantized: Quantized,
    image_feeds: list[Feed],
    run_graph: Any,
    signal_to_noise_db: Any,
) -> None:
    expected = np.concatenate([run_graph(residual, feed)["y"] for feed in image_feeds])
    model = quantized(residual, image_feeds)
    for level in ("none", "all"):
        got = np.concatenate([run_graph(model, feed, level)["y"] for feed in image_feeds])
        assert signal_to_noise_db(expected, got) > 30.0, level


def test_the_quantized_graph_agrees_with_the_onnx_reference(
    residual: ir.Model,
    quantized: Quantized,
    image_feeds: list[Feed],
    run_graph: Any,
) -> None:
    model = ir.to_proto(quantized(residual, image_feeds))
    # The reference knows Q and DQ since opset 19; nothing else in this graph has changed its meaning since 17.
    model.opset_import[0].version, model.ir_version = 21, 10
    reference = ReferenceEvaluator(model)
    for feed in image_feeds[:2]:
        (expected,) = reference.run(None, feed)
        np.testing.assert_allclose(run_graph(model, feed)["y"], expected, atol=0.02)


def test_only_integers_are_stored_of_the_weights(
    residual: ir.Model,
    quantized: Quantized,
    image_feeds: list[Feed],
    stored_in: Any,
) -> None:
    floats = {
        name: array for name, array in stored_in(residual).items() if array.dtype == np.float32 and array.ndim > 1
    }
    stored = stored_in(quantized(residual, image_feeds))
    assert floats.keys().isdisjoint(stored)
    assert sorted(array.shape for array in stored.values() if array.dtype == np.int8 and array.ndim > 1) == sorted(
        array.shape for array in floats.values()
    )
    assert all(array.ndim <= 1 for array in stored.values() if array.dtype == np.float32)


def test_every_scale_is_finite_and_positive(
    residual: ir.Model,
    quantized: Quantized,
    image_feeds: list[Feed],
    stored_in: Any,
) -> None:
    model = quantized(residual, image_feeds)
    stored = stored_in(model)
    scales = [node.inputs[1].name for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert scales
    for name in scales:
        assert np.isfinite(stored[name]).all()
        assert (stored[name] > 0).all()


def test_a_fully_connected_network_computes_what_numpy_computes(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    run_graph: Any,
) -> None:
    w1, b1, w2, b2 = random_array(6, 8), random_array(8), random_array(4, 8), random_array(4)
    model = prepared(
        """g (float[N,6] x) => (float[N,4] y) {
            a = Gemm (x, w1, b1)
            r = Relu (a)
            y = Gemm <transB = 1> (r, w2, b2)
        }""",
        w1=w1,
        b1=b1,
        w2=w2,
        b2=b2,
    )
    rng = np.random.default_rng(2)
    data = rng.normal(0.0, 1.0, (64, 6)).astype(np.float32)

    # All of it written out: asymmetric u8 activations over their extremes, symmetric s8 weights for each output.
    def fake(values: npt.NDArray[Any], low: float, high: float) -> tuple[npt.NDArray[Any], float]:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255.0))
        zero = np.rint(-low / scale)
        return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale, scale

    def fake_weight(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        scales = np.abs(values).max(axis=0, keepdims=True) / 127.0
        return np.rint(values / scales) * scales, scales[0]

    hidden = np.maximum(data @ w1 + b1, 0.0)
    x, x_scale = fake(data, float(data.min()), float(data.max()))
    q1, s1 = fake_weight(w1)
    bias1 = np.rint(b1 / (x_scale * s1)) * (x_scale * s1)
    h, h_scale = fake(np.maximum(x @ q1 + bias1, 0.0), 0.0, float(hidden.max()))
    q2, s2 = fake_weight(w2.T)
    bias2 = np.rint(b2 / (h_scale * s2)) * (h_scale * s2)
    expected = h @ q2 + bias2

    # What is written out has sums without limits, which a processor without VNNI has in this form only.
    graph = with_exact_sums(quantized(model, [{"x": data}], scheme=PRESETS["x86-vnni"]))
    # One step of the hidden layer may fall to the other side of a tie.
    step = h_scale * float(np.abs(q2).max())
    for level in ("none", "all"):
        got = run_graph(graph, {"x": data}, level)["y"]
        assert np.abs(got - expected).max() <= step + 1e-5
        assert np.mean(np.abs(got - expected) < 1e-4) > 0.9


def test_biases_are_int32_on_the_exact_scale_of_the_products(
    residual: ir.Model,
    quantized: Quantized,
    image_feeds: list[Feed],
    stored_in: Any,
) -> None:
    model = quantized(residual, image_feeds)
    stored = stored_in(model)
    checked = 0
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        source, weight, bias = (value.producer() for value in node.inputs)
        assert stored[bias.inputs[0].name].dtype == np.int32
        products = stored[source.inputs[1].name] * stored[weight.inputs[1].name]
        assert np.array_equal(stored[bias.inputs[1].name], products.astype(np.float32))
        checked += 1
    assert checked == 3


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_every_kind_of_weights_loads_and_stays_near_the_float_model(
    residual: ir.Model,
    quantized: Quantized,
    image_feeds: list[Feed],
    runtime: tuple[int, ...],
    per_channel: bool,
    symmetric: bool,
    signed: bool,
    run_graph: Any,
    signal_to_noise_db: Any,
) -> None:
    expected = run_graph(residual, image_feeds[0])["y"]
    scheme = Scheme(
        activations=PRESETS["x86"].activations,
        weights=Grid(bits=8, signed=signed, symmetric=symmetric),
        per_channel=per_channel,
    )
    model = quantized(residual, image_feeds, scheme=scheme)
    assert signal_to_noise_db(expected, run_graph(model, image_feeds[0], "none")["y"]) > 25.0
    if per_channel and not symmetric and runtime < (1, 27):
        with pytest.raises(RuntimeRefusedError, match="zero point of per-channel filter"):
            run_graph(model, image_feeds[0], "all")
    else:
        assert signal_to_noise_db(expected, run_graph(model, image_feeds[0], "all")["y"]) > 25.0


@pytest.mark.parametrize("symmetric", [True, False])
def test_signed_activations_load_and_stay_near_the_float_model(
    residual: ir.Model,
    quantized: Quantized,
    image_feeds: list[Feed],
    symmetric: bool,
    run_graph: Any,
    signal_to_noise_db: Any,
) -> None:
    expected = run_graph(residual, image_feeds[0])["y"]
    scheme = Scheme(
        activations=Grid(bits=8, signed=True, symmetric=symmetric),
        weights=PRESETS["x86"].weights,
    )
    model = exact_form(scheme)(quantized(residual, image_feeds, scheme=scheme))
    for level in ("none", "all"):
        assert signal_to_noise_db(expected, run_graph(model, image_feeds[0], level)["y"]) > 25.0
