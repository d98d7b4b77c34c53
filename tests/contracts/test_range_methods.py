"""Every registered range method keeps the promises that quantization rests on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qtool.calib.affine import Range, dequantize, params_from_range, quantize
from qtool.calib.errors import CalibError
from qtool.calib.grid import Grid
from qtool.calib.ranges import RANGE_METHODS, range_method_class
from qtool.calib.statistics import TensorStatistics

_GRIDS = {
    "u8": Grid(bits=8, signed=False, symmetric=False),
    "s8": Grid(bits=8, signed=True, symmetric=False),
    "s8-symmetric": Grid(bits=8, signed=True, symmetric=True),
    "u8-symmetric": Grid(bits=8, signed=False, symmetric=True),
}

# One line a method: parameters that it must refuse. A new method with parameters needs its line here.
_REFUSED: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "moving-average": ({"spread": -0.1}, {"spread": float("nan")}),
    "percentile": ({"keep": 0.5}, {"keep": 1.01}, {"keep": 0.0}, {"keep": 99.99}, {"keep": float("nan")}),
    "entropy": ({"bins": 0}, {"bins": 255}, {"bins": -1}),
    "mse": ({"candidates": 1}, {"candidates": 0}, {"candidates": -5}),
}


def _two_sided(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return rng.normal(0.3, 1.0, (24, 1000)).astype(np.float32)


def _relu_like(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return np.maximum(rng.normal(0.0, 2.0, (24, 1000)), 0.0).astype(np.float32)


def _bounded(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return np.clip(rng.normal(2.0, 3.0, (24, 1000)), 0.0, 6.0).astype(np.float32)


def _heavy_tailed(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return rng.laplace(0.0, 1.0, (24, 1000)).astype(np.float32)


def _negative(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return -np.abs(rng.normal(0.0, 1.0, (24, 1000))).astype(np.float32)


def _far_from_zero(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return rng.uniform(5.0, 7.0, (24, 1000)).astype(np.float32)


def _tiny(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return rng.normal(0.0, 1e-9, (24, 1000)).astype(np.float32)


def _large(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return rng.normal(0.0, 1e6, (24, 1000)).astype(np.float32)


def _silu_like(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    x = rng.normal(0.0, 2.0, (24, 1000))
    return (x / (1.0 + np.exp(-x))).astype(np.float32)


_USUAL: Mapping[str, Callable[[np.random.Generator], npt.NDArray[np.float32]]] = {
    "two-sided": _two_sided,
    "relu-like": _relu_like,
    "bounded": _bounded,
    "heavy-tailed": _heavy_tailed,
    "negative": _negative,
    "far-from-zero": _far_from_zero,
    "tiny": _tiny,
    "large": _large,
    "silu-like": _silu_like,
}
_DEGENERATE: Mapping[str, npt.NDArray[np.float32]] = {
    "all-zero": np.zeros((4, 10), np.float32),
    "constant": np.full((4, 10), 3.5, np.float32),
    "negative-constant": np.full((4, 10), -0.25, np.float32),
    "one-value": np.array([[0.75]], np.float32),
    "one-sample": np.linspace(-1.0, 2.0, 17, dtype=np.float32)[np.newaxis],
    "two-values": np.array([[-1.0], [1.0]], np.float32),
    "mostly-zero": np.eye(1, 1000, 17, dtype=np.float32),
    "subnormal": np.full((2, 3), 1e-41, np.float32),
    "huge": np.array([[-1e37, 0.0, 1e37]], np.float32),
}


@pytest.fixture(params=sorted(RANGE_METHODS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(_GRIDS))
def grid(request: pytest.FixtureRequest) -> Grid:
    return _GRIDS[request.param]


@pytest.fixture(params=sorted(_USUAL))
def samples(request: pytest.FixtureRequest) -> npt.NDArray[np.float32]:
    return _USUAL[request.param](np.random.default_rng(7))


@pytest.fixture(params=sorted(_DEGENERATE))
def odd_samples(request: pytest.FixtureRequest) -> npt.NDArray[np.float32]:
    return _DEGENERATE[request.param]


def _statistics(samples: npt.NDArray[np.float32], *, batch_size: int = 1) -> TensorStatistics:
    statistics = TensorStatistics()
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        statistics.add(batch, batch, samples=len(batch))
    return statistics


def _span(name: str, samples: npt.NDArray[np.float32], grid: Grid, *, batch_size: int = 1) -> Range:
    return range_method_class(name)().span(_statistics(samples, batch_size=batch_size), grid)


def _assert_equal(one: Range, other: Range) -> None:
    """Equal up to the order in which sums over batches were added."""
    np.testing.assert_allclose([one.low, one.high], [other.low, other.high], rtol=1e-9)


def _signal_to_noise_db(samples: npt.NDArray[np.float32], span: Range, grid: Grid) -> float:
    params = params_from_range(span, grid)
    noise = dequantize(quantize(samples, params), params).astype(np.float64) - samples
    return float(10 * np.log10(np.sum(samples.astype(np.float64) ** 2) / np.sum(noise**2)))


def test_the_order_of_batches_does_not_matter(name: str, samples: npt.NDArray[np.float32], grid: Grid) -> None:
    shuffled = samples[np.random.default_rng(1).permutation(len(samples))]
    _assert_equal(_span(name, samples, grid), _span(name, shuffled, grid))


@pytest.mark.parametrize("batch_size", [5, 24])
def test_the_split_into_batches_does_not_matter(
    name: str, samples: npt.NDArray[np.float32], grid: Grid, batch_size: int
) -> None:
    _assert_equal(_span(name, samples, grid, batch_size=batch_size), _span(name, samples, grid))


def test_merged_statistics_give_the_range_of_one_pass(name: str, samples: npt.NDArray[np.float32], grid: Grid) -> None:
    merged = _statistics(samples[:10])
    merged.merge(_statistics(samples[10:]))
    _assert_equal(range_method_class(name)().span(merged, grid), _span(name, samples, grid))


def test_the_same_statistics_give_the_same_range(name: str, samples: npt.NDArray[np.float32], grid: Grid) -> None:
    assert _span(name, samples, grid) == _span(name, samples, grid)


def test_the_statistics_are_left_as_they_were(name: str, samples: npt.NDArray[np.float32], grid: Grid) -> None:
    statistics = _statistics(samples)
    before = deepcopy(statistics)
    range_method_class(name)().span(statistics, grid)
    for field in fields(TensorStatistics):
        assert np.array_equal(getattr(statistics, field.name), getattr(before, field.name)), field.name


def _assert_within_the_data(span: Range, samples: npt.NDArray[np.float32], grid: Grid) -> None:
    assert np.isfinite([span.low, span.high]).all()
    assert span.low <= span.high
    low, high = min(float(samples.min()), 0.0), max(float(samples.max()), 0.0)
    if grid.symmetric:
        # A symmetric grid reaches equally far on both sides anyway.
        low, high = -max(-low, high), max(-low, high)
    slack = 1e-9 * (high - low)
    assert low - slack <= span.low
    assert span.high <= high + slack


def test_the_range_never_reaches_past_the_data_and_zero(
    name: str, samples: npt.NDArray[np.float32], grid: Grid
) -> None:
    _assert_within_the_data(_span(name, samples, grid), samples, grid)


def test_odd_data_gets_a_range_too(name: str, odd_samples: npt.NDArray[np.float32], grid: Grid) -> None:
    span = _span(name, odd_samples, grid)
    _assert_within_the_data(span, odd_samples, grid)
    params = params_from_range(span, grid)
    assert np.isfinite(params.scale)
    assert params.scale > 0


def test_a_constant_is_kept(name: str, grid: Grid) -> None:
    for constant in (3.5, -0.25):
        samples = np.full((4, 10), constant, np.float32)
        params = params_from_range(_span(name, samples, grid), grid)
        restored = dequantize(quantize(samples, params), params)
        np.testing.assert_allclose(restored, samples, rtol=0.01)


def test_usual_activations_keep_most_of_their_signal(name: str, samples: npt.NDArray[np.float32], grid: Grid) -> None:
    # Eight bits over the whole range of such data give 30 to 45 dB; a method that clips must still be of use.
    assert _signal_to_noise_db(samples, _span(name, samples, grid), grid) > 20.0


def test_a_wider_tensor_gets_a_wider_range(name: str, samples: npt.NDArray[np.float32], grid: Grid) -> None:
    # A power of two moves every value by whole histogram bins, so that nothing else changes.
    one, doubled = _span(name, samples, grid), _span(name, samples * np.float32(4.0), grid)
    np.testing.assert_allclose([doubled.low, doubled.high], [4.0 * one.low, 4.0 * one.high], rtol=1e-6, atol=1e-12)


def test_unreasonable_parameters_are_refused_with_a_fix(name: str) -> None:
    method = range_method_class(name)
    refused = _REFUSED.get(name, ())
    parameters = {field.name for field in fields(method)}  # type: ignore[arg-type]
    assert parameters == {key for bad in refused for key in bad}
    for bad in refused:
        with pytest.raises(CalibError) as caught:
            method(**bad)
        assert caught.value.problem
        assert caught.value.fix


def test_every_method_is_a_frozen_value_with_a_docstring(name: str) -> None:
    method = range_method_class(name)
    assert method() == method()
    assert hash(method()) == hash(method())
    assert method.__doc__
    assert method.span.__doc__


def test_mse_is_no_worse_than_any_other_method_in_its_own_measure(samples: npt.NDArray[np.float32], grid: Grid) -> None:
    def error(method: str) -> float:
        params = params_from_range(_span(method, samples, grid), grid)
        return float(np.mean((dequantize(quantize(samples, params), params).astype(np.float64) - samples) ** 2))

    best = min(error(method) for method in RANGE_METHODS)
    # Its model of rounding, step^2 / 12, is a few percent off on a few thousand values.
    assert error("mse") <= 1.05 * best


def test_the_clipping_methods_clip_outliers() -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(0.0, 1.0, (10, 100_000)).astype(np.float32)
    samples[0, 0] = 60.0
    grid = _GRIDS["u8"]
    assert _span("minmax", samples, grid).high == 60.0
    for method in ("moving-average", "percentile", "entropy", "mse"):
        assert _span(method, samples, grid).high < 30.0, method
