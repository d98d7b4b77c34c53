"""Applies GPTQ to a layer: minimizes the error of its products instead of that of its weights.

Rounding to nearest minimizes the error of each weight; GPTQ (E. Frantar et al., ICLR 2023) minimizes that of the
products, |(W' - W) x|^2 over the layer's calibration inputs x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import dequantize
from qtool.weights.gptq import Curvature, PairLimit, gptq
from qtool.weights.input_hessian import LayerInput
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.saturation import KernelOrder, excess_of, merged, partners_in, rescaled
from qtool.weights.weight_problem import WeightProblem

# Damping: this fraction of the mean diagonal is added to H, so that rarely used inputs change nothing.
_DAMPING = 0.01
# Scales tried for outputs whose pairs exceed the limit, from their own to one at which none does.
_WIDTHS = 4
# Outputs whose noise grows by less than this fraction keep their scale.
_LITTLE_NOISE = 0.05


def curvature_of(hessian: npt.NDArray[np.float64]) -> Curvature:
    """Returns the factors that GPTQ needs, from H, (groups, inputs, inputs)."""
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    # With damping alone, as in a group whose inputs were always zero, every weight is rounded to nearest.
    damping = np.where(diagonal.any(axis=1), _DAMPING * diagonal.mean(axis=1), 1.0)
    damped = hessian.copy()
    every = np.arange(hessian.shape[1])
    damped[:, every, every] += damping[:, np.newaxis]
    return Curvature.of(damped)


def guided(problem: WeightProblem, found: QuantizedWeight) -> QuantizedWeight:
    """Returns the weight rounded with GPTQ on the scales that it has; see ``WeightAlgorithm``."""
    return gptq_rounded(
        problem.weight,
        found,
        problem.layer,
        problem.hessian,
        curvature=problem.curvature(),
        orders=problem.orders,
        largest_pair=problem.largest_pair,
    )


def gptq_rounded(
    weight: npt.NDArray[np.float32],
    rounded: QuantizedWeight,
    layer: LayerInput,
    hessian: npt.NDArray[np.float64],
    *,
    curvature: Curvature | None = None,
    orders: Sequence[KernelOrder] = (),
    largest_pair: int | None = None,
) -> QuantizedWeight:
    """Returns ``rounded`` with integers that cause less error in the layer's outputs, on the same scales.

    Scales of outputs whose pairs would exceed the limit are widened where that costs less than keeping them.

    Args:
        weight: the float weight.
        rounded: its integers rounded to nearest, and the scales.
        layer: how the weight multiplies its input.
        hessian: H of the layer's input, (groups, inputs, inputs).
        curvature: of ``hessian``, where the caller has it.
        orders: how the kernels of its layers pair weights.
        largest_pair: limit on the sum of a pair of one sign; None for no limit.
    """
    problem = _Problem(weight, layer, curvature_of(hessian) if curvature is None else curvature)
    free = problem.rounded(rounded)
    if largest_pair is None or not rounded.params.grid.signed or len(orders) != 1:
        return free
    excess = excess_of(free, orders, largest_pair)
    if (excess <= 1.0).all():
        return free
    partners = partners_in(orders[0], weight.shape, layer.output_axis)
    best = problem.rounded(rounded, partners, largest_pair)
    reduced = tuple(int(channel) for channel in np.flatnonzero(excess > 1.0))
    if rounded.params.scale.size != weight.shape[layer.output_axis]:
        return replace(best, reduced_channels=reduced)
    noise = noise_by_output(weight, best, layer, hessian)
    improvable = noise > (1.0 + _LITTLE_NOISE) * noise_by_output(weight, free, layer, hessian)
    for step in np.linspace(0.0, 1.0, _WIDTHS)[1:] if improvable.any() else ():
        wider = rescaled(rounded, weight, np.where(improvable, 1.0 + (excess - 1.0) * step, 1.0))
        candidate = problem.rounded(wider, partners, largest_pair, outputs=improvable)
        found = noise_by_output(weight, candidate, layer, hessian)
        best = merged(best, candidate, improvable & (found < noise))
        noise = np.where(improvable, np.minimum(noise, found), noise)
    return replace(best, reduced_channels=reduced)


class _Problem:
    """Rounds one weight on several scales."""

    def __init__(self, weight: npt.NDArray[np.float32], layer: LayerInput, curvature: Curvature) -> None:
        self._layer = layer
        self._curvature = curvature
        self._moved = np.moveaxis(weight, layer.output_axis, 0)
        self._matrix = self._moved.reshape(len(self._moved), -1).astype(np.float64)

    def rounded(
        self,
        given: QuantizedWeight,
        partners: npt.NDArray[np.intp] | None = None,
        largest: int = 0,
        *,
        outputs: npt.NDArray[np.bool_] | None = None,
    ) -> QuantizedWeight:
        """Returns ``given`` with new integers, whose pairs of ``partners`` add up to at most ``largest``.

        With ``outputs``, (outputs,), only those are rounded where the layer is not divided into groups.
        """
        layer, params = self._layer, given.params
        chosen = slice(None) if outputs is None or layer.groups > 1 else outputs
        count = len(self._matrix)
        scales = np.broadcast_to(params.scale.reshape(-1).astype(np.float64), (count,))[chosen]
        zeros = np.broadcast_to(params.zero_point.reshape(-1).astype(np.float64), (count,))[chosen]
        steps = (self._matrix[chosen] / scales[:, np.newaxis]).reshape(layer.groups, -1, layer.inputs)
        grouped = zeros.reshape(layer.groups, -1)
        limit = None if partners is None else PairLimit(partners=partners, largest=largest, zeros=grouped)
        found = gptq(steps, self._curvature, params.grid.low - grouped, params.grid.high - grouped, limit)
        integers = np.moveaxis(given.integers, layer.output_axis, 0).reshape(count, -1).copy()
        integers[chosen] = (found.reshape(len(scales), -1) + zeros[:, np.newaxis]).astype(params.grid.dtype)
        stored = np.moveaxis(integers.reshape(self._moved.shape), 0, layer.output_axis)
        return replace(given, integers=np.ascontiguousarray(stored))


def output_noise(
    weight: npt.NDArray[np.float32], rounded: QuantizedWeight, layer: LayerInput, hessian: npt.NDArray[np.float64]
) -> float:
    """Returns the sum of |(W' - W) x|^2 over the calibration inputs of ``hessian``."""
    return float(noise_by_output(weight, rounded, layer, hessian).sum())


def noise_by_output(
    weight: npt.NDArray[np.float32], rounded: QuantizedWeight, layer: LayerInput, hessian: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the same for each output, (outputs,)."""
    return product_power(dequantize(rounded.integers, rounded.params).astype(np.float64) - weight, layer, hessian)


def product_power(
    weight: npt.NDArray[np.floating[Any]], layer: LayerInput, hessian: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the sum of |W x|^2 over the calibration inputs of ``hessian``, for each output, (outputs,)."""
    matrix = np.moveaxis(weight, layer.output_axis, 0).reshape(layer.groups, -1, layer.inputs)
    power: npt.NDArray[np.float64] = ((matrix @ hessian) * matrix).sum(axis=2).reshape(-1)
    return power
