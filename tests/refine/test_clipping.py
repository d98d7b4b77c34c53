"""Narrower scales for weights, as far as the layer's products gain by it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.calib.affine import dequantize
from qtool.calib.granularity import Granularity, PerChannel, PerTensor
from qtool.calib.grid import Grid
from qtool.planning import build_plan
from qtool.selection import NodeSelection
from qtool.weights.clipping import clip_channels
from qtool.weights.gptq_layer import output_noise
from qtool.weights.input_hessian import LayerInput, layer_inputs
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
from qtool.workflows.quantize.prepare import prepare

_GRID = Grid(bits=8, signed=True, symmetric=True)


def _layer(weight: np.ndarray, *, groups: int = 1) -> LayerInput:
    body = "c = MatMul (x, w)" if weight.ndim == 2 else f"c = Conv <group = {groups}> (x, w)"
    rank = "n,40" if weight.ndim == 2 else f"n,{groups * weight.shape[1]},9,9"
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{rank}] x) => (float y) {{ {body}\n y = Tanh (c) }}'
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = prepare(ir.from_proto(proto))
    (layer,) = layer_inputs(model, build_plan(model, PRESETS["x86"], NodeSelection()).integer_nodes)
    return layer


def _matrix() -> tuple[np.ndarray, np.ndarray]:
    """Returns weights with an outlier in half of the outputs, and moments of inputs that hardly use it."""
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 0.1, (40, 12)).astype(np.float32)
    weight[3, ::2] = 1.0
    inputs = generator.normal(0, 1, (300, 40))
    inputs[:, 3] *= 0.001
    return weight, (inputs.T @ inputs)[np.newaxis]


def _noise_of_rows(weight: np.ndarray, rounded: QuantizedWeight, hessian: np.ndarray) -> np.ndarray:
    change = dequantize(rounded.integers, rounded.params).astype(np.float64) - weight
    return np.einsum("io,ij,jo->o", change, hessian[0], change)


def test_outputs_with_a_weight_that_hardly_counts_get_finer_steps() -> None:
    weight, hessian = _matrix()
    nearest = round_to_nearest("w", weight, _GRID, PerChannel(1))
    clipped = clip_channels(weight, nearest, _layer(weight), hessian)
    ratios = clipped.params.scale / nearest.params.scale
    assert (ratios[::2] < 0.8).all()
    assert (ratios > 0.499).all()
    before, after = _noise_of_rows(weight, nearest, hessian), _noise_of_rows(weight, clipped, hessian)
    assert (after <= before * (1 + 1e-5)).all()
    assert after[::2].sum() < 0.5 * before[::2].sum()
    assert clipped.integers.dtype == np.int8


def test_each_scale_is_the_best_of_those_that_were_tried() -> None:
    generator = np.random.default_rng(4)
    weight = generator.standard_t(2, (40, 6)).astype(np.float32)
    inputs = np.abs(generator.normal(0, 1, (500, 40)))
    hessian = (inputs.T @ inputs)[np.newaxis]
    nearest = round_to_nearest("w", weight, _GRID, PerChannel(1))
    chosen = _noise_of_rows(weight, clip_channels(weight, nearest, _layer(weight), hessian), hessian)
    for ratio in (1.0, 0.975, 0.95, 0.9):
        scale = nearest.params.scale * np.float32(ratio)
        change = np.clip(np.rint(weight / scale), -127, 127) * scale - weight
        tried = np.einsum("io,ij,jo->o", change, hessian[0], change)
        assert (chosen <= tried * (1 + 1e-4)).all()


@pytest.mark.parametrize(("shape", "groups"), [((6, 4, 3, 3), 1), ((6, 2, 3, 3), 3), ((5, 1, 3, 3), 5)])
@pytest.mark.parametrize("granularity", [PerChannel(0), PerTensor()])
def test_no_layer_gets_noisier(shape: tuple[int, ...], groups: int, granularity: Granularity) -> None:
    generator = np.random.default_rng(1)
    weight = generator.standard_t(3, shape).astype(np.float32)
    inputs = generator.normal(0, 1, (groups, 100, int(np.prod(shape[1:]))))
    inputs[:, :, 0] *= 0.01
    hessian = inputs.transpose(0, 2, 1) @ inputs
    layer = _layer(weight, groups=groups)
    nearest = round_to_nearest("w", weight, _GRID, granularity)
    clipped = clip_channels(weight, nearest, layer, hessian)
    assert clipped.params.scale.shape == nearest.params.scale.shape
    assert output_noise(weight, clipped, layer, hessian) <= output_noise(weight, nearest, layer, hessian) * (1 + 1e-5)


def test_a_large_bias_keeps_its_room() -> None:
    weight, hessian = _matrix()
    bias = np.zeros(12)
    bias[[0, 2]] = 2.0**30 * 1e-3, 2.0**30 * 0.006
    nearest = round_to_nearest("w", weight, _GRID, PerChannel(1), bias=bias, input_scale=1.0)
    assert nearest.widened_channels == ()
    clipped = clip_channels(weight, nearest, _layer(weight), hessian, bias=bias)
    assert clipped.params.scale[0] < 0.8 * nearest.params.scale[0]
    assert 0.00599 <= clipped.params.scale[2] < nearest.params.scale[2]
    widened = round_to_nearest("w", weight, _GRID, PerChannel(1), bias=4 * bias)
    kept = clip_channels(weight, widened, _layer(weight), hessian, bias=4 * bias)
    assert widened.widened_channels == (2,)
    assert kept.params.scale[2] == widened.params.scale[2]


def test_inputs_that_were_never_seen_change_nothing() -> None:
    weight, hessian = _matrix()
    nearest = round_to_nearest("w", weight, _GRID, PerChannel(1))
    clipped = clip_channels(weight, nearest, _layer(weight), np.zeros_like(hessian))
    np.testing.assert_array_equal(clipped.params.scale, nearest.params.scale)
    np.testing.assert_array_equal(clipped.integers, nearest.integers)
