"""Moving outlier channels into the weights behind them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper, parser

from qtool.plan import build_plan
from qtool.runtime.graphs import open_graph
from qtool.schemes import PRESETS
from qtool.selection import Selection
from qtool.weights.smoothing import channel_reach, smooth, smoothable_tensors, smoothing_factors
from qtool.workflows.prepare import prepare

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


def test_only_outliers_get_a_factor() -> None:
    factors = smoothing_factors(np.array([1.0, 1.2, 0.8, 30.0, 2.9, 0.0]))
    np.testing.assert_allclose(factors, [1, 1, 1, 30 / 3.3, 1, 1])
    assert (smoothing_factors(np.zeros(4)) == 1).all()


def test_the_model_computes_the_same_with_flatter_activations() -> None:
    x = np.abs(np.random.default_rng(1).normal(0, 1, (5, 8))).astype(np.float32)
    model = _model()
    before = _run(model, x)
    tensors = smoothable_tensors(model, build_plan(model, PRESETS["x86"], Selection()))
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
    tensors = smoothable_tensors(model, build_plan(model, PRESETS["x86"], Selection()))[:1]
    smooth(model, tensors, {"h": np.array([1, 1, 1, 16.0, 1, 1, 1, 1])})
    for name, value in _run(model, x).items():
        np.testing.assert_allclose(value, before[name], atol=1e-4)


def test_the_reach_of_channels_is_the_largest_magnitude() -> None:
    class Runner:
        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return feeds

    feeds = [{"t": np.array([[[1.0, -5.0]], [[2.0, 3.0]]])}, {"t": np.array([[[-4.0, 0.0]]])}]
    np.testing.assert_array_equal(channel_reach(Runner(), feeds)["t"], [4.0, 5.0])
