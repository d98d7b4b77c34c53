"""Weights and biases become the integers that the formulas say."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qtool.calib.affine import dequantize
from qtool.calib.granularity import PerChannel, PerTensor
from qtool.calib.grid import Grid
from qtool.errors import InputError
from qtool.weights.round_to_nearest import quantize_bias, round_to_nearest

_S8 = Grid(bits=8, signed=True, symmetric=True)
_U8 = Grid(bits=8, signed=False, symmetric=False)


@pytest.fixture
def weight() -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(3)
    return (rng.normal(0.0, 1.0, (4, 5, 3)) * np.array([0.01, 1.0, 30.0, 0.2])[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_symmetric_weights_per_channel_follow_the_formula(weight: npt.NDArray[np.float32], axis: int) -> None:
    others = tuple(other for other in range(3) if other != axis)
    scales = (np.abs(weight).max(axis=others).astype(np.float64) / 127.0).astype(np.float32)
    shape = [1, 1, 1]
    shape[axis] = -1
    expected = np.clip(np.rint(weight / scales.reshape(shape)), -127, 127)
    result = round_to_nearest("w", weight, _S8, PerChannel(axis))
    assert np.array_equal(result.params.scale, scales)
    assert np.array_equal(result.integers, expected)
    assert result.integers.dtype == np.int8
    assert not result.params.zero_point.any()
    assert (result.dead_channels, result.widened_channels) == ((), ())


def test_symmetric_weights_per_tensor_follow_the_formula(weight: npt.NDArray[np.float32]) -> None:
    scale = np.float32(float(np.abs(weight).max()) / 127.0)
    result = round_to_nearest("w", weight, _S8, PerTensor())
    assert result.params.scale == scale
    assert result.params.scale.shape == result.params.zero_point.shape == ()
    assert np.array_equal(result.integers, np.clip(np.rint(weight / scale), -127, 127))


def test_asymmetric_weights_follow_the_formula(weight: npt.NDArray[np.float32]) -> None:
    low, high = float(weight.min()), float(weight.max())
    scale = np.float32((high - low) / 255.0)
    zero = round(-low / float(scale))
    result = round_to_nearest("w", weight, _U8, PerTensor())
    assert result.params.scale == scale
    assert int(result.params.zero_point) == zero
    assert np.array_equal(result.integers, np.clip(np.rint(weight / scale) + zero, 0, 255))


def test_the_largest_weight_of_each_channel_uses_the_whole_grid(weight: npt.NDArray[np.float32]) -> None:
    result = round_to_nearest("w", weight, _S8, PerChannel(0))
    assert (np.abs(result.integers.astype(int)).max(axis=(1, 2)) == 127).all()


def test_a_dead_channel_is_named_and_stays_zero(weight: npt.NDArray[np.float32]) -> None:
    weight[2] = 0.0
    result = round_to_nearest("w", weight, _S8, PerChannel(0))
    assert result.dead_channels == (2,)
    assert (result.params.scale > 0).all()
    assert not dequantize(result.integers, result.params)[2].any()


def test_an_all_zero_weight_has_a_usable_scale() -> None:
    for granularity in (PerTensor(), PerChannel(0)):
        result = round_to_nearest("w", np.zeros((3, 2), np.float32), _S8, granularity)
        assert np.isfinite(result.params.scale).all()
        assert (result.params.scale > 0).all()
        assert not result.integers.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)])
def test_weights_that_are_not_finite_are_an_error_that_names_the_tensor(
    weight: npt.NDArray[np.float32], bad: float, granularity: Any
) -> None:
    weight[1, 2, 0] = bad
    with pytest.raises(InputError, match=r"'conv1\.weight'") as caught:
        round_to_nearest("conv1.weight", weight, _S8, granularity)
    assert caught.value.fix


def test_a_usual_bias_leaves_the_weights_as_they_are(weight: npt.NDArray[np.float32]) -> None:
    bias = np.array([0.5, -2.0, 0.0, 1.0], np.float32)
    alone = round_to_nearest("w", weight, _S8, PerChannel(0))
    together = round_to_nearest("w", weight, _S8, PerChannel(0), bias=bias, input_scale=0.02)
    assert np.array_equal(alone.integers, together.integers)
    assert np.array_equal(alone.params.scale, together.params.scale)
    assert together.widened_channels == ()


def test_a_bias_is_rounded_on_the_scale_of_the_products() -> None:
    bias = np.array([0.5, -2.0, 0.0], np.float32)
    weight_scale = np.array([0.01, 0.003, 0.5], np.float32)
    integers, scale = quantize_bias(bias, weight_scale, 0.02)
    assert integers.dtype == np.int32
    assert scale.dtype == np.float32
    assert np.array_equal(scale, np.float32(0.02) * weight_scale)
    assert np.array_equal(integers, np.rint(bias.astype(np.float64) / scale))


def test_a_bias_for_a_weight_of_one_scale_has_one_scale() -> None:
    integers, scale = quantize_bias(np.array([1.0, -1.0], np.float32), np.array(0.1, np.float32), 0.5)
    assert scale.shape == ()
    assert integers.tolist() == [20, -20]


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)])
def test_a_bias_too_large_for_int32_widens_the_scale_and_survives(
    weight: npt.NDArray[np.float32], granularity: Any
) -> None:
    weight *= np.float32(1e-7)
    bias = np.array([100.0, 1e-7, -1000.0, 0.0], np.float32)
    result = round_to_nearest("w", weight, _S8, granularity, bias=bias, input_scale=1e-3)
    integers, scale = quantize_bias(bias, result.params.scale, 1e-3)
    np.testing.assert_allclose(integers * scale.astype(np.float64), bias, rtol=1e-6, atol=float(scale.max()) / 2)
    # As much room again is left for the products.
    assert np.abs(integers.astype(np.int64)).max() <= 2**30 * (1 + 1e-6)
    if isinstance(granularity, PerChannel):
        assert result.widened_channels == (0, 2)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)])
def test_the_bias_of_a_dead_channel_survives(granularity: Any) -> None:
    bias = np.array([3.0, -1e-6, 0.0], np.float32)
    result = round_to_nearest("w", np.zeros((3, 4), np.float32), _S8, granularity, bias=bias, input_scale=5.0)
    integers, scale = quantize_bias(bias, result.params.scale, 5.0)
    np.testing.assert_allclose(integers * scale.astype(np.float64), bias, rtol=1e-6, atol=float(scale.max()) / 2)
    assert not dequantize(result.integers, result.params).any()
    assert integers[0] != 0


def test_scales_of_products_never_vanish() -> None:
    weight = np.full((2, 3), 1e-30, np.float32)
    result = round_to_nearest("w", weight, _S8, PerChannel(0), bias=np.zeros(2, np.float32), input_scale=2.0**-60)
    _, scale = quantize_bias(np.zeros(2, np.float32), result.params.scale, 2.0**-60)
    assert (scale > np.finfo(np.float32).tiny).all()
