"""Fitting layers to the float model, one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.calib.affine import AffineParams, params_from_range
from qtool.calib.ranges.min_max import MinMax
from qtool.calib.specs import Feed
from qtool.calib.statistics import TensorStatistics
from qtool.metrics.noise import NoiseMeter
from qtool.plan import Plan
from qtool.planning import build_plan
from qtool.progress import Silent
from qtool.qdq.insert_qdq import insert_qdq
from qtool.runtime.graphs import open_graph, watching
from qtool.schemes import Scheme
from qtool.search.block_reconstruction import Reconstruction, reconstruct
from qtool.selection import NodeSelection
from qtool.weights.bias_correction import set_biases
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
from qtool.weights.saturation import pair_sums
from qtool.workflows.quantize.prepare import prepare

_CONVOLUTIONS = """
g (float[n,3,12,12] x) => (float[n,10] y)
{
    c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1,1,1,1], group = 24> (r1, w2, b2)
    r2 = Relu (c2)
    c3 = Conv (r2, w3, b3)
    s = Add (c3, r1)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w4, b4)
}
"""
_SHAPES = {
    "w1": (24, 3, 3, 3),
    "b1": (24,),
    "w2": (24, 1, 3, 3),
    "b2": (24,),
    "w3": (24, 24, 1, 1),
    "b3": (24,),
    "w4": (10, 24),
    "b4": (10,),
}
_PRODUCTS = """
g (float[n,6,16] x) => (float[n,6,16] y)
{
    m1 = MatMul (x, w1)
    a1 = Add (m1, b1)
    r1 = Relu (a1)
    m2 = MatMul (r1, w2)
    y = Softmax (m2)
}
"""


@dataclass(frozen=True)
class Case:
    """A float model, how it is quantized, and data."""

    model: ir.Model
    plan: Plan
    scheme: Scheme
    activations: Mapping[str, AffineParams]
    weights: Mapping[str, QuantizedWeight]
    feeds: list[Feed]
    others: list[Feed]

    def fit(self, **options: Any) -> Reconstruction:
        given = (self.plan, self.scheme, self.activations, self.weights)
        return reconstruct(self.model, *given, self.feeds, Silent(), **options)

    def noise(self, found: Reconstruction | None = None) -> float:
        """Returns noise over signal on samples that no fit has seen."""
        quantized = self.model.clone()
        set_biases(quantized, {} if found is None else found.biases)
        insert_qdq(quantized, self.plan, self.activations, {**self.weights, **({} if found is None else found.weights)})
        meter = NoiseMeter()
        with open_graph(self.model) as float_session, open_graph(quantized) as session:
            for feed in self.others:
                meter.add(float_session.run(feed), session.run(feed))
        return meter.worst()


def _case(text: str, shapes: Mapping[str, tuple[int, ...]], scheme: str = "x86", *, clipped: float = 1.0) -> Case:
    """Quantizes by what the samples reach, but for the part that is ``clipped``."""
    generator = np.random.default_rng(2)
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in shapes.items():
        array = generator.normal(0, 0.3, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = prepare(ir.from_proto(proto))
    plan = build_plan(model, PRESETS[scheme], NodeSelection())
    (shape,) = [[dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] for value in proto.graph.input]
    # What is clipped lies on one side, so that means move.
    feeds = [{"x": generator.gamma(1.5, 1.0, (4, *shape)).astype(np.float32)} for _ in range(32)]
    statistics = {name: TensorStatistics() for name in plan.observed}
    with watching(model, list(statistics)) as watched, open_graph(watched) as session:
        for feed in feeds[:16]:
            for name, value in session.run(feed).items():
                statistics[name].add(value.reshape(-1), value.reshape(-1), samples=4)
    activations = {}
    for activation in plan.activations.values():
        span = MinMax().span(statistics[activation.source], activation.grid)
        narrow = type(span)(span.low * clipped, span.high * clipped)
        activations[activation.source] = params_from_range(narrow, activation.grid)
    weights = {}
    for name, weight in plan.weights.items():
        array = model.graph.initializers[name].const_value.numpy()
        weights[name] = round_to_nearest(name, array, weight.grid, weight.granularity)
    return Case(model, plan, PRESETS[scheme], activations, weights, feeds[:16], feeds[16:])


@pytest.fixture(scope="module")
def convolutions() -> Case:
    return _case(_CONVOLUTIONS, _SHAPES, clipped=0.5)


@pytest.fixture(scope="module")
def fitted(convolutions: Case) -> Reconstruction:
    return convolutions.fit()


def test_fitted_layers_bring_the_outputs_closer_to_the_float_model(convolutions: Case, fitted: Reconstruction) -> None:
    before = convolutions.noise()
    biases, integers = convolutions.fit(rounding=False), convolutions.fit(biases=False)
    assert not biases.weights
    assert not integers.biases
    assert convolutions.noise(biases) < 0.2 * before
    assert convolutions.noise(integers) < 0.8 * before
    assert convolutions.noise(fitted) < 0.2 * before


def test_no_layer_gets_noisier_on_what_was_held_back(fitted: Reconstruction) -> None:
    assert len(fitted.fits) == 4
    assert all(fit.noise_after <= fit.noise_before * 1.001 for fit in fitted.fits.values())
    assert any(fit.noise_after < 0.8 * fit.noise_before for fit in fitted.fits.values())


def test_the_first_layer_gets_the_bias_that_its_mean_lacks(convolutions: Case) -> None:
    biases = convolutions.fit(rounding=False).biases
    case = convolutions
    node = next(node for node in case.model.graph if node.op_type == "Conv")
    images = np.concatenate([feed["x"] for feed in case.feeds])
    params = case.activations["x"]
    steps = np.clip(np.rint(images / params.scale) + int(params.zero_point), 0, 255)
    given = ((steps - int(params.zero_point)) * params.scale).astype(np.float32)
    weight = case.model.graph.initializers["w1"].const_value.numpy()
    rounded = case.weights["w1"].integers * case.weights["w1"].params.scale.reshape(-1, 1, 1, 1)

    def mean(inputs: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        tensors = torch.from_numpy(inputs), torch.from_numpy(kernel.astype(np.float32))
        return torch.nn.functional.conv2d(*tensors, padding=1).mean(dim=(0, 2, 3)).numpy()

    change = mean(images, weight) - mean(given, rounded)
    got = biases[node.name] - case.model.graph.initializers["b1"].const_value.numpy()
    # Only means that stand out of their uncertainty are taken back, and only some of the positions are looked at.
    assert np.abs(got - change).max() < 0.5 * np.abs(change).max()
    assert np.corrcoef(got, change)[0, 1] > 0.9


def test_integers_stay_on_their_scales_and_grids(convolutions: Case, fitted: Reconstruction) -> None:
    assert fitted.weights
    for name, weight in fitted.weights.items():
        before = convolutions.weights[name]
        np.testing.assert_array_equal(weight.params.scale, before.params.scale)
        assert weight.integers.dtype == before.integers.dtype
        assert weight.integers.shape == before.integers.shape
        assert weight.integers.min() >= before.params.grid.low
        assert (weight.integers != before.integers).any()


def test_a_fit_is_the_same_every_time_and_leaves_the_model_alone(convolutions: Case, fitted: Reconstruction) -> None:
    before = ir.to_proto(convolutions.model).SerializeToString()
    again = convolutions.fit()
    assert ir.to_proto(convolutions.model).SerializeToString() == before
    assert again.biases.keys() == fitted.biases.keys()
    for name, bias in fitted.biases.items():
        np.testing.assert_array_equal(again.biases[name], bias)
    for name, weight in fitted.weights.items():
        np.testing.assert_array_equal(again.weights[name].integers, weight.integers)


def test_a_walk_that_is_stopped_returns_what_it_has(convolutions: Case, fitted: Reconstruction) -> None:
    asked = iter([False, False, True])
    part = convolutions.fit(stop=lambda: next(asked))
    assert list(part.fits) == list(fitted.fits)[:2]
    for name, bias in part.biases.items():
        np.testing.assert_array_equal(fitted.biases[name], bias)


def test_products_of_matrices_are_fitted_with_and_without_a_bias() -> None:
    case = _case(_PRODUCTS, {"w1": (16, 24), "b1": (24,), "w2": (24, 16)}, clipped=0.4)
    found = case.fit()
    assert len(found.fits) == 2
    assert case.noise(found) < 0.9 * case.noise()
    assert case.fit(biases=False).biases == {}


def test_pairs_of_weights_stay_small_enough_for_sums_of_16_bits() -> None:
    case = _case(_CONVOLUTIONS, _SHAPES, scheme="x86-avx2", clipped=0.4)
    found = case.fit()
    assert found.weights
    pairs = 0
    for name, weight in found.weights.items():
        # A depthwise convolution has no pairs.
        for order in case.plan.weights[name].orders:
            pairs += 1
            assert pair_sums(weight.integers, order).worst.max() <= 128
    assert pairs
    assert case.noise(found) < case.noise()
