"""Scaling channels across layers: what may be scaled, that nothing else changes, and what it gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.calib.ranges.min_max import MinMax
from qtool.calib.statistics import TensorStatistics
from qtool.metrics.noise import NoiseMeter
from qtool.planning import build_plan
from qtool.progress import Silent
from qtool.quantizer import quantize_graph
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.selection import NodeSelection
from qtool.weights.channel_importance import output_importance
from qtool.weights.channel_scaling import scale_channels
from qtool.weights.channel_statistics import gather_channels
from qtool.weights.cross_layer_equalization import equalizing_factors, watched_tensors
from qtool.weights.scaling_regions import ScalingRegion, scaling_regions
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.tune.cross_layer_equalization import equalize_model
from tests.graphs_read import plan_of

_TWO_CONVS = "a = Conv <pads = [1,1,1,1]> (x, w)\n b = BETWEEN\n c = Conv <group = 1> (b, v, c0)\n y = Tanh (c)"
_DEPTHWISE = """
a = Conv (x, w, b0)
r = Clip (a, zero, six)
d = Conv <group = 8, pads = [1,1,1,1]> (r, depth)
y = Tanh (d)
"""
_RESIDUAL = """
a = Conv (x, w)
r = Relu (a)
c = Conv <pads = [1,1,1,1]> (r, square, b0)
s = Add (r, c)
p = GlobalAveragePool (s)
f = Flatten (p)
g = Gemm <transB = 1> (f, last, c0)
y = Softmax (g)
"""
_TRUNK = """
a = Conv (x, w)
r = Relu (a)
c = Conv <pads = [1,1,1,1]> (r, square, b0)
s = Add (r, c)
e = Conv (s, v, c0)
y = Tanh (e)
"""
_MATRICES = (
    "a = MatMul (x, one)\n h = Add (a, b0)\n r = LeakyRelu <alpha = 0.1> (h)\n m = MatMul (r, two)\n y = Tanh (m)"
)
_UP = "a = Conv (x, w)\n r = PRelu (a, slope)\n u = ConvTranspose <strides = [2,2]> (r, up)\n y = Tanh (u)"


def _model(body: str, shape: str = "n,3,6,6") -> ir.Model:
    generator = np.random.default_rng(0)
    arrays = {
        "w": generator.normal(0, 0.5, (8, 3, 3, 3)),
        "v": generator.normal(0, 0.5, (5, 8, 3, 3)),
        "square": generator.normal(0, 0.3, (8, 8, 3, 3)),
        "depth": generator.normal(0, 0.5, (8, 1, 3, 3)),
        "up": generator.normal(0, 0.5, (8, 4, 2, 2)),
        "slope": generator.uniform(0, 0.5, (8, 1, 1)),
        "b0": generator.normal(0, 0.3, 8),
        "c0": generator.normal(0, 0.3, 5),
        "eye": np.eye(8).reshape(8, 8, 1, 1),
        "last": generator.normal(0, 0.5, (5, 8)),
        "one": generator.normal(0, 0.5, (3, 8)),
        "two": generator.normal(0, 0.5, (8, 5)),
        "zero": np.array(0.0),
        "six": np.array(6.0),
        "minus": np.array(-1.0),
        "half": generator.normal(0, 1, (1, 1, 6, 6)),
    }
    # Some channels reach much less far than others.
    reach = np.array([4, 0.02, 1, 0.1, 2, 0.3, 0.05, 0.5])
    arrays["w"] *= reach.reshape(-1, 1, 1, 1)
    arrays["one"] *= reach
    for name in ("v", "depth"):
        arrays[name] /= reach.reshape((1, -1, 1, 1) if name == "v" else (-1, 1, 1, 1))
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float y) {{ {body} }}'
    )
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items() if name in used
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return prepare(ir.from_proto(proto))


def _feeds(shape: tuple[int, ...] = (4, 3, 6, 6), *, count: int = 6) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(7)
    return [{"x": generator.normal(0, 1, shape).astype(np.float32)} for _ in range(count)]


def _outputs(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    with open_graph(model) as session:
        return [session.run(feed) for feed in feeds]


def _equalized(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> list[tuple[ScalingRegion, np.ndarray]]:
    plan, regions = plan_of(model), scaling_regions(model)
    with watching(model, watched_tensors(regions, plan)) as graph, open_graph(graph) as session:
        seen = gather_channels(Watcher(session), feeds, regions)
    importance = output_importance(model, regions, seen)
    found = [(region, equalizing_factors(model, plan, region, seen, importance)) for region in regions]
    chosen = [(region, factors) for region, factors in found if factors is not None]
    scale_channels(model, chosen)
    return chosen


def _quantized(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> ir.Model:
    copy = model.clone()
    plan = plan_of(copy)
    statistics = {name: TensorStatistics() for name in plan.observed}
    with watching(copy, plan.observed) as graph, open_graph(graph) as session:
        for feed in feeds:
            for name, value in Watcher(session).run(feed).items():
                statistics[name].add(value, value)
    quantize_graph(copy, plan, statistics, MinMax(), bias_correction=False)
    return copy


@pytest.mark.parametrize(
    ("body", "producers", "readers"),
    [
        (_TWO_CONVS.replace("BETWEEN", "Relu (a)"), 1, 1),
        (_TWO_CONVS.replace("BETWEEN", "LeakyRelu (a)"), 1, 1),
        (_TWO_CONVS.replace("BETWEEN", "MaxPool <kernel_shape = [2,2]> (a)"), 1, 1),
        (_TWO_CONVS.replace("BETWEEN", "AveragePool <kernel_shape = [2,2]> (a)"), 1, 1),
        (_DEPTHWISE, 1, 1),
        (_RESIDUAL, 2, 2),
        (_UP, 1, 1),
    ],
)
def test_any_factors_leave_what_the_model_computes(body: str, producers: int, readers: int) -> None:
    model = _model(body)
    # Faint enough for no channel to come near the bound of a Clip.
    feeds = [{"x": 0.1 * feed["x"]} for feed in _feeds()]
    before = _outputs(model, feeds)
    (region,) = scaling_regions(model)
    assert (len(region.producers), len(region.readers), region.channels) == (producers, readers, 8)
    first = model.graph.initializers["w"].const_value.numpy().copy()
    factors = np.random.default_rng(1).uniform(0.3, 3.0, 8)
    scale_channels(model, [(region, factors)])
    assert not np.allclose(model.graph.initializers["w"].const_value.numpy(), first)
    for expected, got in zip(before, _outputs(model, feeds), strict=True):
        np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-4, atol=1e-5)


def test_a_bias_that_is_added_behind_a_product_is_scaled_as_well() -> None:
    model, feeds = _model(_MATRICES, "n,7,3"), _feeds((2, 7, 3))
    before = _outputs(model, feeds)
    (region,) = scaling_regions(model)
    scale_channels(model, [(region, np.linspace(0.2, 4.0, 8))])
    for expected, got in zip(before, _outputs(model, feeds), strict=True):
        np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "between", ["Sigmoid (a)", "Clip (a, minus, six)", "Softplus (a)", "Add (a, half)", "Mul (a, a)", "Sum (a, a)"]
)
def test_what_does_not_commute_with_scaling_is_left_alone(between: str) -> None:
    assert scaling_regions(_model(_TWO_CONVS.replace("BETWEEN", between))) == ()


def test_a_tensor_that_something_else_reads_is_left_alone() -> None:
    model = _model(_TWO_CONVS.replace("BETWEEN", "Relu (a)"))
    assert len(scaling_regions(model)) == 1
    relu = next(node for node in model.graph if node.op_type == "Relu")
    model.graph.outputs.append(relu.outputs[0])
    assert scaling_regions(model) == ()


def test_weights_that_two_layers_share_are_left_alone() -> None:
    body = _TWO_CONVS.replace("BETWEEN", "Relu (a)").replace("y = Tanh (c)", "e = Conv (b, v)\n t = Tanh (e)")
    joined = "p = Tanh (c)\n q = Flatten (p)\n u = Flatten (t)\n y = Concat <axis = 1> (q, u)"
    assert scaling_regions(_model(f"{body}\n {joined}")) == ()


@pytest.mark.parametrize("body", [_TWO_CONVS.replace("BETWEEN", "Relu (a)"), _DEPTHWISE, _TRUNK])
def test_chosen_factors_leave_the_float_model_and_take_noise_from_the_quantized_one(body: str) -> None:
    model, feeds = _model(body), _feeds()
    expected = _outputs(model, feeds)
    plain = _outputs(_quantized(model, feeds), feeds)
    assert _equalized(model, feeds)
    floats, after = _outputs(model, feeds), _outputs(_quantized(model, feeds), feeds)
    noise = {}
    for name, outputs in (("plain", plain), ("float", floats), ("after", after)):
        meter = NoiseMeter()
        for reference, got in zip(expected, outputs, strict=True):
            meter.add(reference, got)
        noise[name] = meter.worst()
    assert noise["float"] < 1e-9
    assert noise["after"] < 0.9 * noise["plain"]


def test_channels_that_a_clip_cuts_keep_their_factor() -> None:
    model = _model(_DEPTHWISE)
    loud = [{"x": 6 * feed["x"]} for feed in _feeds()]
    expected = _outputs(model, loud)
    ((region, factors),) = _equalized(model, loud)
    assert list(region.bounds.values()) == [6.0]
    assert factors[0] == 1.0
    assert factors.max() > 4.0
    for reference, got in zip(expected, _outputs(model, loud), strict=True):
        np.testing.assert_allclose(got["y"], reference["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite_equalizes_nothing(value: float) -> None:
    model, feeds = _model(_TWO_CONVS.replace("BETWEEN", "Relu (a)")), _feeds()
    feeds[2]["x"][0, 0] = value
    assert _equalized(model, feeds) == []


def test_layers_with_one_scale_for_all_outputs_are_left_alone() -> None:
    model = _model(_TWO_CONVS.replace("BETWEEN", "Relu (a)"))
    plan = build_plan(model, replace(PRESETS["x86"], per_channel=False), NodeSelection())
    assert equalize_model(model, plan, _feeds(), Silent()) == ()


def test_the_workflow_names_what_it_equalized() -> None:
    model, feeds = _model(_RESIDUAL), _feeds()
    expected = _outputs(model, feeds)
    assert equalize_model(model, plan_of(model), _feeds(), Silent()) == ("r", "c", "s", "p", "f")
    for reference, got in zip(expected, _outputs(model, feeds), strict=True):
        np.testing.assert_allclose(got["y"], reference["y"], rtol=1e-4, atol=1e-5)


def test_channels_that_reach_equally_far_are_left_alone() -> None:
    model = _model(_TWO_CONVS.replace("BETWEEN", "Relu (a)"))
    for name, axes in (("w", (1, 2, 3)), ("v", (0, 2, 3))):
        stored = model.graph.initializers[name]
        array = stored.const_value.numpy()
        stored.const_value = ir.tensor(array / np.abs(array).max(axis=axes, keepdims=True), name=name)
    before = ir.to_proto(model).SerializeToString()
    assert _equalized(model, _feeds()) == []
    assert ir.to_proto(model).SerializeToString() == before


def test_noise_counts_by_what_the_layers_behind_make_of_it() -> None:
    pooled = "e = Conv (s, eye)\n k = Relu (e)\n p = GlobalAveragePool (k)"
    model, feeds = _model(_RESIDUAL.replace("p = GlobalAveragePool (s)", pooled)), _feeds()
    regions = scaling_regions(model)
    plan = plan_of(model)
    with watching(model, watched_tensors(regions, plan)) as graph, open_graph(graph) as session:
        seen = gather_channels(Watcher(session), feeds, regions)
    importance = output_importance(model, regions, seen)
    nodes = {node.outputs[0].name: node.name for node in model.graph}
    last = model.graph.initializers["last"].const_value.numpy().astype(np.float64)
    let_by = seen["k"].others / seen["k"].count
    expected = importance[nodes["g"]] @ np.square(last) * let_by
    np.testing.assert_allclose(importance[nodes["e"]], expected, rtol=1e-6)
    assert len(set(importance[nodes["g"]])) == 1
