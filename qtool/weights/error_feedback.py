"""Rounds a layer's weights so that its products, not its weights, are off by least.

Rounding to nearest minimizes the error of each weight; what counts is that of the products, |(W' - W) x|^2 over the
inputs x that the layer really meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.affine import dequantize
from qtool.weights.gptq import PairLimit, gptq
from qtool.weights.input_moments import LayerInput
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.saturation import KernelOrder, excess_of, merged, partners_in, rescaled

# A part of the mean diagonal is added to H, so that inputs that were hardly seen move nothing.
_DAMPING = 0.01
# Scales that are tried for outputs whose pairs add up to too much, from their own to one under which none does.
_WIDTHS = 4
# Noise that pairs add to an output is not worth another scale below this part of it.
_LITTLE_NOISE = 0.05


def round_with_feedback(
    weight: npt.NDArray[np.float32],
    rounded: QuantizedWeight,
    layer: LayerInput,
    moments: npt.NDArray[np.float64],
    *,
    orders: Sequence[KernelOrder] = (),
    largest_pair: int | None = None,
) -> QuantizedWeight:
    """Returns ``rounded`` with other integers, with less error in the layer's outputs, on the same scales.

    Scales of outputs whose pairs would add up to too much are widened where that costs less than keeping them.

    Args:
        weight: the float weight.
        rounded: its integers rounded to nearest, and the scales.
        layer: how the weight meets its input.
        moments: H of the layer's input, (groups, inputs, inputs).
        orders: how the kernels of its layers pair weights.
        largest_pair: what a pair of one sign may add up to; None for everything.
    """
    if largest_pair is None or not rounded.params.grid.signed or len(orders) != 1:
        return _rounded(weight, rounded, layer, moments, None)
    partners = partners_in(orders[0], weight.shape, layer.output_axis)
    free = _rounded(weight, rounded, layer, moments, None)
    excess = excess_of(free, orders, largest_pair)
    if (excess <= 1.0).all():
        return free
    best = _rounded(weight, rounded, layer, moments, (partners, largest_pair))
    if rounded.params.scale.size != weight.shape[layer.output_axis]:
        return replace(best, reduced_channels=(0,))
    noise = noise_by_output(weight, best, layer, moments)
    worth_it = noise > (1.0 + _LITTLE_NOISE) * noise_by_output(weight, free, layer, moments)
    for step in np.linspace(0.0, 1.0, _WIDTHS)[1:]:
        if not worth_it.any():
            break
        factors = np.where(worth_it, 1.0 + (excess - 1.0) * step, 1.0)
        wider = rescaled(rounded, weight, factors)
        candidate = _rounded(weight, wider, layer, moments, (partners, largest_pair))
        found = noise_by_output(weight, candidate, layer, moments)
        best = merged(best, candidate, worth_it & (found < noise))
        noise = np.minimum(noise, found)
    return replace(best, reduced_channels=tuple(int(channel) for channel in np.flatnonzero(excess > 1.0)))


def _rounded(
    weight: npt.NDArray[np.float32],
    rounded: QuantizedWeight,
    layer: LayerInput,
    moments: npt.NDArray[np.float64],
    pairs: tuple[npt.NDArray[np.intp], int] | None,
) -> QuantizedWeight:
    params = rounded.params
    axis = layer.output_axis
    moved = np.moveaxis(weight, axis, 0)
    matrix = moved.reshape(len(moved), -1).astype(np.float64)
    scales = np.broadcast_to(params.scale.reshape(-1).astype(np.float64), len(matrix))
    zeros = np.broadcast_to(params.zero_point.reshape(-1).astype(np.float64), len(matrix))
    steps = (matrix / scales[:, np.newaxis]).reshape(layer.groups, -1, layer.inputs)
    low = (params.grid.low - zeros).reshape(layer.groups, -1)
    high = (params.grid.high - zeros).reshape(layer.groups, -1)
    limit = None
    if pairs is not None:
        partners, largest = pairs
        limit = PairLimit(partners=partners, largest=largest, zeros=zeros.reshape(layer.groups, -1))
    integers = gptq(steps, _damped(moments), low, high, limit).reshape(matrix.shape) + zeros[:, np.newaxis]
    stored = np.moveaxis(integers.reshape(moved.shape), 0, axis).astype(params.grid.dtype)
    return replace(rounded, integers=np.ascontiguousarray(stored))


def output_noise(
    weight: npt.NDArray[np.float32], rounded: QuantizedWeight, layer: LayerInput, moments: npt.NDArray[np.float64]
) -> float:
    """Returns sum of |(W' - W) x|^2 over the inputs that ``moments`` has seen."""
    return float(noise_by_output(weight, rounded, layer, moments).sum())


def noise_by_output(
    weight: npt.NDArray[np.float32], rounded: QuantizedWeight, layer: LayerInput, moments: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the same for each output, (outputs,)."""
    return product_power(dequantize(rounded.integers, rounded.params).astype(np.float64) - weight, layer, moments)


def product_power(
    weight: npt.NDArray[np.floating[Any]], layer: LayerInput, moments: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns sum of |W x|^2 over the inputs that ``moments`` has seen, for each output, (outputs,)."""
    matrix = np.moveaxis(weight, layer.output_axis, 0).reshape(layer.groups, -1, layer.inputs)
    power: npt.NDArray[np.float64] = ((matrix @ moments) * matrix).sum(axis=2).reshape(-1)
    return power


def _damped(moments: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    # With a diagonal of damping alone, as in a group that was never fed anything, every weight is rounded to nearest.
    damping = np.where(diagonal.any(axis=1), _DAMPING * diagonal.mean(axis=1), 1.0)
    damped: npt.NDArray[np.float64] = moments + np.eye(moments.shape[1]) * damping[:, np.newaxis, np.newaxis]
    return damped
