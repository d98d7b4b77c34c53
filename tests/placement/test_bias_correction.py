"""Corrected biases take back what rounding the weights did to the mean of each output channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qtool.calib.affine import dequantize
from qtool.calib.grid import Grid
from qtool.calib.statistics import TensorStatistics
from qtool.graph.constants import constant_array
from qtool.plan import Plan
from qtool.runtime.session import Session
from qtool.weights.bias_correction import correct_biases
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
from tests.graphs_read import plan_of

Arrays = Callable[..., npt.NDArray[np.float32]]
Prepared = Callable[..., ir.Model]

_S8 = Grid(bits=8, signed=True, symmetric=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer from x to a, with weight w; ``mean_axes`` are those of a that are no channels."""

    shapes: str
    body: str
    weight: tuple[int, ...]
    x: tuple[int, ...]
    mean_axes: tuple[int, ...]


_LAYERS = {
    "conv": Layer(
        shapes="(float[N,4,6,6] x) => (float[N,6,6,6] a, float[N,6,6,6] y)",
        body="a = Conv (x, w, b)",
        weight=(6, 4, 1, 1),
        x=(3, 4, 6, 6),
        mean_axes=(0, 2, 3),
    ),
    "grouped-conv": Layer(
        shapes="(float[N,4,6,6] x) => (float[N,6,6,6] a, float[N,6,6,6] y)",
        body="a = Conv <group = 2> (x, w, b)",
        weight=(6, 2, 1, 1),
        x=(3, 4, 6, 6),
        mean_axes=(0, 2, 3),
    ),
    "conv-without-bias": Layer(
        shapes="(float[N,4,6,6] x) => (float[N,6,6,6] a, float[N,6,6,6] y)",
        body="a = Conv (x, w)",
        weight=(6, 4, 1, 1),
        x=(3, 4, 6, 6),
        mean_axes=(0, 2, 3),
    ),
    "gemm": Layer(
        shapes="(float[N,4] x) => (float[N,6] a, float[N,6] y)",
        body="a = Gemm (x, w, b)",
        weight=(4, 6),
        x=(9, 4),
        mean_axes=(0,),
    ),
    "transposed-gemm": Layer(
        shapes="(float[N,4] x) => (float[N,6] a, float[N,6] y)",
        body="a = Gemm <transB = 1> (x, w, b)",
        weight=(6, 4),
        x=(9, 4),
        mean_axes=(0,),
    ),
    "matmul-and-add": Layer(
        shapes="(float[N,T,4] x) => (float[N,T,6] a, float[N,T,6] y)",
        body="m = MatMul (x, w) a = Add (m, b)",
        weight=(4, 6),
        x=(3, 5, 4),
        mean_axes=(0, 1),
    ),
}


def _model(layer: Layer, prepared: Prepared, random_array: Arrays) -> ir.Model:
    return prepared(
        f"g {layer.shapes} {{ {layer.body} y = Tanh (a) }}", w=random_array(*layer.weight), b=random_array(6)
    )


def _weight(model: ir.Model) -> npt.NDArray[Any]:
    array = constant_array(model.graph.initializers["w"])
    assert array is not None
    return array


def _coarse(model: ir.Model, plan: Plan) -> QuantizedWeight:
    """Rounds to a handful of values, so that there is something to take back."""
    values = np.round(_weight(model) * 4.0) / np.float32(4.0)
    return round_to_nearest("w", values.astype(np.float32), _S8, plan.weights["w"].granularity)


def _statistics(plan: Plan, x: npt.NDArray[np.float32]) -> dict[str, TensorStatistics]:
    seen = TensorStatistics(channel_axis=plan.channel_axes["x"])
    seen.add(x, x)
    seen.add_channels(x)
    return {"x": seen}


def _means(model: ir.Model, layer: Layer, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    session = Session(ir.to_proto(model).SerializeToString(), threads=1, level="none")
    means: npt.NDArray[Any] = session.run({"x": x})["a"].mean(axis=layer.mean_axes, dtype=np.float64)
    return means


@pytest.mark.parametrize("name", sorted(_LAYERS))
def test_every_output_channel_keeps_its_mean(name: str, prepared: Prepared, random_array: Arrays) -> None:
    layer = _LAYERS[name]
    model = _model(layer, prepared, random_array)
    x = np.abs(random_array(*layer.x)) + np.float32(0.5)
    plan, float_means = plan_of(model), _means(model, layer, x)
    coarse = _coarse(model, plan)
    value = model.graph.initializers["w"]
    original = value.const_value
    value.const_value = ir.tensor(dequantize(coarse.integers, coarse.params))
    rounded_off = np.abs(_means(model, layer, x) - float_means).max()
    value.const_value = original
    corrected = correct_biases(model, plan, {"w": coarse}, _statistics(plan, x))
    value.const_value = ir.tensor(dequantize(coarse.integers, coarse.params))
    np.testing.assert_allclose(_means(model, layer, x), float_means, atol=1e-5)
    assert list(corrected) == list(plan.weights["w"].nodes)
    assert corrected[plan.weights["w"].nodes[0]] == pytest.approx(rounded_off, rel=1e-3)
    assert rounded_off > 0.01


def test_without_channel_means_nothing_changes(prepared: Prepared, random_array: Arrays) -> None:
    layer = _LAYERS["conv"]
    model = _model(layer, prepared, random_array)
    plan, before = plan_of(model), ir.to_proto(model)
    seen = TensorStatistics()
    x = random_array(*layer.x)
    seen.add(x, x)
    assert correct_biases(model, plan, {"w": _coarse(model, plan)}, {"x": seen}) == {}
    assert ir.to_proto(model) == before


def test_a_bias_that_differs_from_row_to_row_is_left_alone(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[N,6,4] x) => (float[N,6,6] a, float[N,6,6] y) { m = MatMul (x, w) a = Add (m, b) y = Tanh (a) }",
        w=random_array(4, 6),
        b=random_array(6, 1),
    )
    plan, before = plan_of(model), ir.to_proto(model)
    x = random_array(2, 6, 4)
    assert correct_biases(model, plan, {"w": _coarse(model, plan)}, _statistics(plan, x)) == {}
    assert ir.to_proto(model) == before


def test_a_bias_shared_by_two_layers_is_corrected_for_each_alone(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,6,6] x) => (float[N,6,6,6] a, float[N,6,6,6] c, float[N,6,6,6] y) {
            a = Conv (x, w, b)
            c = Conv (x, v, b)
            y = Div (a, c)
        }""",
        w=random_array(6, 4, 1, 1),
        v=random_array(6, 4, 1, 1, seed=1),
        b=random_array(6),
    )
    plan = plan_of(model)
    x = np.abs(random_array(3, 4, 6, 6)) + np.float32(0.5)
    other = constant_array(model.graph.initializers["v"])
    assert other is not None
    exact = round_to_nearest("v", other, _S8, plan.weights["v"].granularity)
    nodes = {node.name: node for node in model.graph}
    second = nodes["/c/Conv"].inputs[2]
    corrected = correct_biases(model, plan, {"w": _coarse(model, plan), "v": exact}, _statistics(plan, x))
    assert set(corrected) == {"/a/Conv", "/c/Conv"}
    biases = [constant_array(nodes[name].inputs[2]) for name in ("/a/Conv", "/c/Conv")]
    assert biases[0] is not None
    assert biases[1] is not None
    assert not np.array_equal(biases[0], biases[1])
    assert second is not None
    assert second.name == "b"
