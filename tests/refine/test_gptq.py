"""Rounding with GPTQ, and the moments of layers' inputs that guide it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.calib.affine import dequantize
from qtool.calib.granularity import PerChannel
from qtool.calib.grid import Grid
from qtool.planning import build_plan
from qtool.selection import NodeSelection
from qtool.weights.gptq_layer import gptq_rounded, output_noise
from qtool.weights.input_hessian import LayerInput, gather_hessians, layer_inputs
from qtool.weights.round_to_nearest import round_to_nearest
from qtool.workflows.quantize.prepare import prepare


class _Given:
    """A runner that returns what it was fed."""

    def run(self, feeds: Any) -> Any:
        return feeds


def _layer(text: str, **tensors: np.ndarray) -> tuple[ir.Model, LayerInput]:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    model = prepare(ir.from_proto(proto))
    (layer,) = layer_inputs(model, build_plan(model, PRESETS["x86"], NodeSelection()).integer_nodes)
    return model, layer


def _correlated(rows: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(3)
    mixing = generator.normal(0, 1, (4, columns))
    return (generator.normal(0, 1, (rows, 4)) @ mixing + 0.1 * generator.normal(0, 1, (rows, columns))).astype(
        np.float32
    )


def test_products_are_off_by_less_than_after_rounding_to_nearest() -> None:
    inputs = _correlated(120, 24)
    weight = np.random.default_rng(1).normal(0, 1, (24, 10)).astype(np.float32)
    _, layer = _layer("g (float[n,24] x) => (float[n,10] y) { m = MatMul (x, w)\n y = Relu (m) }", w=weight)
    grid = Grid(bits=8, signed=True, symmetric=True)
    nearest = round_to_nearest("w", weight, grid, PerChannel(1))
    hessian = gather_hessians(_Given(), [{layer.tensor: inputs}], [layer])[layer.node]
    guided = gptq_rounded(weight, nearest, layer, hessian)

    def products_off_by(rounded: Any) -> float:
        change = inputs.astype(np.float64) @ (dequantize(rounded.integers, rounded.params) - weight)
        return float(np.square(change).sum())

    assert products_off_by(guided) < 0.3 * products_off_by(nearest)
    assert output_noise(weight, guided, layer, hessian) == pytest.approx(products_off_by(guided), rel=1e-3)
    np.testing.assert_array_equal(guided.params.scale, nearest.params.scale)
    assert guided.integers.dtype == np.int8
    assert guided.integers.min() >= grid.low
    assert guided.integers.max() <= grid.high


def test_inputs_that_were_never_seen_leave_rounding_to_nearest() -> None:
    weight = np.random.default_rng(1).normal(0, 1, (6, 4)).astype(np.float32)
    _, layer = _layer("g (float[n,6] x) => (float[n,4] y) { m = MatMul (x, w)\n y = Relu (m) }", w=weight)
    nearest = round_to_nearest("w", weight, Grid(bits=8, signed=True, symmetric=True), PerChannel(1))
    guided = gptq_rounded(weight, nearest, layer, np.zeros((1, 6, 6)))
    np.testing.assert_array_equal(guided.integers, nearest.integers)


def test_padding_is_left_out() -> None:
    weight = np.random.default_rng(1).normal(0, 1, (8, 5)).astype(np.float32)
    _, layer = _layer("g (float[n,3,8] x) => (float[n,3,5] y) { m = MatMul (x, w)\n y = Relu (m) }", w=weight)
    tokens = np.random.default_rng(2).normal(0, 1, (2, 3, 8)).astype(np.float32)
    types, mask = np.array([[0, 1, 1], [0, 0, 1]]), np.array([[1, 1, 0], [1, 0, 0]])
    feed = {layer.tensor: tokens, "token_type_ids": types, "attention_mask": mask}
    hessian = gather_hessians(_Given(), [feed], [layer])[layer.node]
    real = tokens[mask == 1].astype(np.float64)
    np.testing.assert_allclose(hessian[0], real.T @ real, rtol=1e-5)


def test_batches_of_any_size_add_up_to_the_moments_of_all() -> None:
    inputs = _correlated(150, 24)
    weight = np.ones((24, 10), np.float32)
    _, layer = _layer("g (float[n,24] x) => (float[n,10] y) { m = MatMul (x, w)\n y = Relu (m) }", w=weight)
    parts = [{layer.tensor: part} for part in np.split(inputs, [3, 40, 41, 90])]
    found = gather_hessians(_Given(), parts, [layer])[layer.node][0]
    expected = inputs.astype(np.float64).T @ inputs
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_of_many_vectors_of_few_inputs_some_are_seen() -> None:
    images = np.random.default_rng(4).normal(0, 1, (2, 3, 40, 40)).astype(np.float32)
    weight = np.ones((3, 1, 3, 3), np.float32)
    text = "g (float[n,3,40,40] x) => (float[n,3,h,v] y) { c = Conv <group = 3> (x, w)\n r = Relu (c)\n y = Tanh (r) }"
    _, layer = _layer(text, w=weight)
    found = gather_hessians(_Given(), [{layer.tensor: images}], [layer])[layer.node]
    patches = torch.nn.functional.unfold(torch.from_numpy(images), 3).numpy().reshape(2, 3, 9, -1)
    every = np.einsum("ncip,ncjp->cij", patches.astype(np.float64), patches)
    share = found[:, 0, 0] / every[:, 0, 0]
    assert (share < 0.05).all()
    # The values are independent: off the diagonal there is little in either.
    power = np.trace(found, axis1=1, axis2=2) / np.trace(every, axis1=1, axis2=2)
    np.testing.assert_allclose(power, power.mean(), rtol=0.2)


@pytest.mark.parametrize(
    ("shape", "attributes", "options"),
    [
        ((6, 4, 3, 3), "pads = [1,1,1,1]", {"padding": 1}),
        ((6, 4, 3, 3), "strides = [2,2]", {"stride": 2}),
        ((4, 1, 3, 3), "group = 4, pads = [1,1,1,1]", {"padding": 1, "groups": 4}),
        ((6, 2, 3, 3), "group = 2, dilations = [2,2]", {"dilation": 2, "groups": 2}),
        ((6, 4, 1, 1), "kernel_shape = [1,1]", {}),
    ],
)
def test_the_moments_of_a_convolution_are_those_of_its_patches(
    shape: tuple[int, ...], attributes: str, options: dict[str, int]
) -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 0.4, shape).astype(np.float32)
    images = generator.normal(0, 1, (1, 4, 7, 7)).astype(np.float32)
    text = f"g (float[n,4,7,7] x) => (float[n,{shape[0]},h,v] y) {{ c = Conv <{attributes}> (x, w)\n y = Relu (c) }}"
    # A second reader behind the first keeps the layer from being an output of the model.
    _, layer = _layer(text.replace("y = Relu (c)", "r = Relu (c)\n y = Tanh (r)"), w=weight)
    hessian = gather_hessians(_Given(), [{layer.tensor: images}], [layer])[layer.node]
    expected = torch.nn.functional.conv2d(torch.from_numpy(images), torch.from_numpy(weight), **options).numpy()
    # sum over positions of (w x)^2 is w H w^T.
    rows = weight.reshape(layer.groups, shape[0] // layer.groups, -1).astype(np.float64)
    energy = np.einsum("goi,gij,goj->go", rows, hessian, rows).reshape(-1)
    np.testing.assert_allclose(energy, np.square(expected.astype(np.float64)).sum(axis=(0, 2, 3)), rtol=1e-4)
