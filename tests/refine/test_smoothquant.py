"""Moving outlier channels into the weights behind them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.planning import build_plan
from qtool.runtime.graphs import open_graph
from qtool.selection import NodeSelection
from qtool.weights.smoothquant import (
    ChannelSpread,
    channel_spreads,
    layer_noise,
    smooth,
    smoothable_tensors,
    smoothing_factors,
)
from qtool.workflows.quantize.prepare import prepare

_TEXT = """
block (float[n,8] x) => (float[n,4] y, float[n,8] kept)
{
    h = LayerNormalization <axis = -1> (x, scale, shift)
    a = MatMul (h, w)
    b = Tanh (a)
    kept = Sqrt (x)
    c = MatMul (b, v)
    y = Tanh (c)
}
"""


def _model(text: str = _TEXT) -> ir.Model:
    generator = np.random.default_rng(0)
    tensors = {
        "scale": generator.uniform(0.5, 2, 8).astype(np.float32),
        "shift": generator.normal(0, 1, 8).astype(np.float32),
        "w": generator.normal(0, 1, (8, 6)).astype(np.float32),
        "v": generator.normal(0, 1, (6, 4)).astype(np.float32),
    }
    tensors["scale"][3] = 80.0
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return prepare(ir.from_proto(proto))


def _run(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    with open_graph(model) as session:
        return session.run({"x": x})


def _spread(values: np.ndarray) -> ChannelSpread:
    return ChannelSpread(low=values.min(axis=0), high=values.max(axis=0), mean_square=np.square(values).mean(axis=0))


def _rounding_noise(x: np.ndarray, weight: np.ndarray, factors: np.ndarray) -> float:
    """Returns the noise power of an output position, by rounding one side at a time."""
    given, scaled = x / factors, weight * factors[:, None]
    step = (max(given.max(), 0) - min(given.min(), 0)) / 255
    steps = np.abs(scaled).max(axis=0) / 127
    exact = given @ scaled
    activations = np.square(np.round(given / step) * step @ scaled - exact).mean(axis=0).sum()
    weights = np.square(given @ (np.round(scaled / steps) * steps) - exact).mean(axis=0).sum()
    return float(activations + 0.25 * weights)


def test_factors_leave_much_less_noise_behind_outliers() -> None:
    generator = np.random.default_rng(2)
    values = generator.normal(0, 1, (4000, 48))
    values[:, [5, 17]] *= 60
    weight = generator.normal(0, 1, (48, 32)).astype(np.float32)
    factors = smoothing_factors(_spread(values), [weight])
    assert factors is not None
    assert np.isfinite(factors).all()
    assert {int(channel) for channel in np.argsort(factors)[-2:]} == {5, 17}
    assert _rounding_noise(values, weight, factors) < 0.1 * _rounding_noise(values, weight, np.ones(48))


def test_channels_that_reach_equally_far_are_left_alone() -> None:
    generator = np.random.default_rng(3)
    weight = generator.normal(0, 1, (16, 8)).astype(np.float32)
    assert smoothing_factors(_spread(generator.uniform(-1, 1, (4000, 16))), [weight]) is None
    assert smoothing_factors(_spread(np.zeros((4, 16))), [weight]) is None


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30))
@settings(max_examples=25, deadline=None)
def test_the_noise_that_is_expected_is_the_noise_of_rounding(seed: int, outlier: float) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 1, (4000, 24))
    values[:, 3] *= outlier
    weight = generator.normal(0, 1, (24, 200))
    factors = generator.uniform(0.7, 3, 24)
    measured = _rounding_noise(values, weight, factors)
    assert layer_noise(_spread(values), [weight], factors) == pytest.approx(measured, rel=0.25)


def test_the_model_computes_the_same_with_flatter_activations() -> None:
    x = np.abs(np.random.default_rng(1).normal(0, 1, (5, 8))).astype(np.float32)
    model = _model()
    before = _run(model, x)
    tensors = smoothable_tensors(model, build_plan(model, PRESETS["x86"], NodeSelection()))
    assert [tensor.tensor for tensor in tensors] == ["h", "b"]
    factors = {tensor.tensor: np.ones(tensor.channels) for tensor in tensors}
    factors["h"][3] = 16.0
    smooth(model, tensors, factors)
    after = _run(model, x)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, atol=1e-5)
    # Nothing but the layer reads the normalization: its own scale and bias took the factor in.
    normalization = next(node for node in model.graph if node.op_type == "LayerNormalization")
    assert model.graph.initializers[normalization.inputs[1].name or ""].const_value.numpy()[3] == 80.0 / 16.0
    assert [node.op_type for node in model.graph].count("Mul") == 1


def test_a_second_reader_keeps_its_own_values() -> None:
    text = _TEXT.replace("kept = Sqrt (x)", "kept = Softplus (h)")
    model = _model(text)
    x = np.random.default_rng(1).normal(0, 1, (5, 8)).astype(np.float32)
    before = _run(model, x)
    tensors = smoothable_tensors(model, build_plan(model, PRESETS["x86"], NodeSelection()))[:1]
    smooth(model, tensors, {"h": np.array([1, 1, 1, 16.0, 1, 1, 1, 1])})
    for name, value in _run(model, x).items():
        np.testing.assert_allclose(value, before[name], atol=1e-4)


def test_the_spread_of_channels_is_that_of_all_batches() -> None:
    class Runner:
        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return feeds

    feeds = [
        {"t": np.array([[[1.0, -5.0]], [[2.0, 3.0]]])},
        {"t": np.zeros((0, 1, 2))},
        {"t": np.array([[[-4.0, 0.0]]])},
    ]
    spread = channel_spreads(Runner(), feeds)["t"]
    np.testing.assert_array_equal(spread.low, [-4.0, -5.0])
    np.testing.assert_array_equal(spread.high, [2.0, 3.0])
    np.testing.assert_allclose(spread.mean_square, [(1 + 4 + 16) / 3, (25 + 9 + 0) / 3])
