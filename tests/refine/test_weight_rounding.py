"""Rounding with its parts: forms remember their results, and fitted integers hold as long as their scales do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qtool.calib.affine import dequantize
from qtool.calib.granularity import PerChannel
from qtool.calib.grid import Grid
from qtool.plan import WeightPlan
from qtool.weights.input_hessian import LayerInput
from qtool.weights.registry import CLIPPING, GPTQ
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.rounding import WeightRounding

_PLAN = WeightPlan(
    tensor="w", grid=Grid(bits=8, signed=True, symmetric=True), granularity=PerChannel(1), nodes=("product",)
)
_LAYER = LayerInput(
    node="product",
    tensor="x",
    weight="w",
    operator="MatMul",
    kernel=(),
    strides=(),
    dilations=(),
    pads=(),
    groups=1,
    inputs=20,
    output_axis=1,
)


def _weight() -> np.ndarray:
    """Returns weights with an outlier that inputs hardly use."""
    weight = np.random.default_rng(2).normal(0, 0.1, (20, 6)).astype(np.float32)
    weight[3] = 1.0
    return weight


def _hessians() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    inputs = generator.normal(0, 1, (400, 3)) @ generator.normal(0, 1, (3, 20)) + 0.1 * generator.normal(
        0, 1, (400, 20)
    )
    inputs[:, 3] *= 0.001
    return {"product": (inputs.T @ inputs)[np.newaxis]}


def _guided() -> WeightRounding:
    return WeightRounding([_LAYER], _hessians())


def _rounded(rounding: WeightRounding, bias: np.ndarray | None = None) -> QuantizedWeight:
    return rounding(_weight(), _PLAN, bias=bias)


def _noise(rounded: QuantizedWeight) -> float:
    """Returns what the products are off by: the sum over outputs of d^T M d, d being what the weights are off by."""
    change = dequantize(rounded.integers, rounded.params).astype(np.float64) - _weight()
    return float(np.einsum("io,ij,jo->", change, _hessians()["product"][0], change))


def _fitted(rounding: WeightRounding) -> dict[str, QuantizedWeight]:
    """Returns integers that no rounding would find, on the grid of ``rounding``."""
    plain = _rounded(rounding)
    return {"w": replace(plain, integers=-plain.integers)}


@pytest.mark.parametrize("rounding", [WeightRounding(), _guided()])
def test_without_parts_weights_go_to_the_nearest_integer(rounding: WeightRounding) -> None:
    scale = np.abs(_weight()).max(axis=0) / 127
    np.testing.assert_allclose(_rounded(rounding).params.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(_rounded(rounding).integers, np.rint(_weight() / scale))


def test_each_part_takes_noise_of_products_away() -> None:
    rounding = _guided()
    noise = {
        (clips, feeds): _noise(_rounded(rounding.form([CLIPPING] * clips + [GPTQ] * feeds)))
        for clips in (False, True)
        for feeds in (False, True)
    }
    assert noise[False, False] == pytest.approx(_noise(_rounded(WeightRounding())))
    assert noise[True, False] < noise[False, False]
    assert noise[False, True] < 0.5 * noise[False, False]
    assert noise[True, True] < noise[True, False]


def test_a_form_is_one_object_that_remembers_its_results() -> None:
    rounding = _guided()
    form = rounding.form([CLIPPING, GPTQ])
    assert rounding.form([CLIPPING, GPTQ]) is form
    assert _rounded(form) is _rounded(form)
    other = rounding.form([GPTQ])
    assert other is not form
    assert not np.array_equal(_rounded(other).params.scale, _rounded(form).params.scale)


def test_a_bias_that_widens_the_scale_is_not_answered_from_memory() -> None:
    form = _guided().form([GPTQ])
    before = _rounded(form)
    bias = np.zeros(6)
    # In units of the input's scale; the weight's scale must be so large that it takes no more than 2^30 steps.
    bias[2] = 2.0**30 * 10 * float(before.params.scale[2])
    after = _rounded(form, bias)
    assert after.params.scale[2] == pytest.approx(10 * before.params.scale[2], rel=1e-5)
    np.testing.assert_array_equal(np.delete(after.params.scale, 2), np.delete(before.params.scale, 2))


def test_only_gptq_counts_as_guided() -> None:
    rounding = _guided()
    assert rounding.form([CLIPPING]).guided == ()
    assert rounding.form([GPTQ]).guided == ("product",)
    assert WeightRounding([_LAYER], {}, algorithms=[GPTQ]).guided == ()


@pytest.mark.parametrize("rounding", [WeightRounding(), _guided(), _guided().form([CLIPPING, GPTQ])])
def test_fitted_integers_take_the_place_of_rounded_ones_on_the_same_scales(rounding: WeightRounding) -> None:
    fitted = _fitted(rounding)
    changed = rounding.with_fitted(fitted)
    assert changed.fitted == ("w",)
    assert (changed.algorithms, changed.guided) == (rounding.algorithms, rounding.guided)
    np.testing.assert_array_equal(_rounded(changed).integers, fitted["w"].integers)
    assert rounding.fitted == ()
    assert not np.array_equal(_rounded(rounding).integers, fitted["w"].integers)


@pytest.mark.parametrize("rounding", [WeightRounding(), _guided()])
def test_fitted_integers_are_dropped_when_a_bias_changes_a_scale(rounding: WeightRounding) -> None:
    fitted = _fitted(rounding)
    bias = np.zeros(6)
    bias[0] = 2.0**32
    np.testing.assert_array_equal(
        _rounded(rounding.with_fitted(fitted), bias).integers, _rounded(rounding, bias).integers
    )


def test_integers_fitted_on_other_scales_are_dropped() -> None:
    plain = _rounded(WeightRounding())
    params = replace(plain.params, scale=plain.params.scale * np.float32(1.01))
    fitted = {"w": replace(plain, integers=-plain.integers, params=params)}
    np.testing.assert_array_equal(_rounded(WeightRounding().with_fitted(fitted)).integers, plain.integers)


def test_fitted_integers_of_one_weight_say_nothing_about_another() -> None:
    changed = WeightRounding().with_fitted({"other": next(iter(_fitted(WeightRounding()).values()))})
    np.testing.assert_array_equal(_rounded(changed).integers, _rounded(WeightRounding()).integers)
