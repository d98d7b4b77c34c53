"""Layer reconstruction: fits one layer's integers and bias to the float layer's outputs, as AdaRound and BRECQ do.

The objective is that of AdaRound (M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML
2020) and BRECQ (Y. Li et al., ICLR 2021) for one layer; the rounding is found in closed form, see ``gptaq``, instead of
by gradient descent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import dequantize
from qtool.weights.gptaq import (
    PairedMoments,
    Samples,
    Steps,
    best_fit,
    fitted_change,
    rounded_steps,
)
from qtool.weights.gptq import Floats, PairLimit
from qtool.weights.input_hessian import LayerInput
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.saturation import KernelOrder, partners_in, without_saturation

# Every so many-th block of positions is held out to evaluate what is fitted on the others.
_HOLDOUT_PERIOD = 4
_BLOCKS = 32
# Integers change only for at least this reduction of the noise; less does not generalize to other positions.
_LEAST_GAIN = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTask:
    """One layer and its inputs.

    Attributes:
        layer: how its weight multiplies its input.
        weight: the float weight.
        rounded: its integers so far.
        orders: how kernels sum up its products.
        largest_pair: limit on the sum of two paired integers; None for no limit.
        wanted: the float layer's inputs, (groups, inputs, positions).
        given: the quantized model's inputs, at the same positions.
        moves_bias: whether it has a bias that may change.
    """

    layer: LayerInput
    weight: npt.NDArray[np.float32]
    rounded: QuantizedWeight
    orders: Sequence[KernelOrder]
    largest_pair: int | None
    wanted: Samples
    given: Samples
    moves_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReconstruction:
    """The reconstruction of one layer.

    Attributes:
        weight: its new integers; None where the old ones stay.
        bias_change: the change of its bias, float64, (output channels,); None where it stays.
        noise_before: noise over signal of its output, before its activation function, on held-out positions; None where
        integers were not to change, which takes no moments of the inputs.
        noise_after: the same after the fit.
    """

    weight: QuantizedWeight | None
    bias_change: npt.NDArray[np.float64] | None
    noise_before: float | None = None
    noise_after: float | None = None


def reconstruct_layer(task: LayerTask, *, rounding: bool) -> LayerReconstruction:
    """Returns new integers where they reduce the noise on held-out positions, and the matching bias."""
    problem = _Problem(task)
    if not rounding:
        return LayerReconstruction(
            weight=None, bias_change=problem.mean_error(task.rounded) if task.moves_bias else None
        )
    before = problem.noise(task.rounded, np.zeros(problem.outputs))
    weight = problem.better_rounding() if task.given.shape[2] >= _BLOCKS else None
    final = task.rounded if weight is None else weight
    change = problem.mean_error(final) if task.moves_bias else None
    after = before if weight is None and change is None else problem.noise(final, change)
    return LayerReconstruction(weight=weight, bias_change=change, noise_before=before, noise_after=after)


class _Problem:
    """Precomputed quantities of a task.

    Attributes:
        outputs: how many output channels there are.
    """

    def __init__(self, task: LayerTask) -> None:
        self._task = task
        self._original = self._matrix(task.weight)
        self.outputs = self._original.shape[0] * self._original.shape[1]
        count = task.given.shape[2]
        self._blocks = np.arange(count) * _BLOCKS // max(count, 1)
        spatial = bool(task.layer.kernel)
        # Positions of a map are equal.
        self._weights = None if spatial else _position_weights(self._original @ task.wanted)
        self._given_means = _block_means(task.given, self._blocks, self._weights)
        self._error_means = _block_means(task.given - task.wanted, self._blocks, self._weights)

    @cached_property
    def _parts(self) -> tuple[Samples, Samples]:
        """The inputs and their errors, weighted, (groups, inputs, positions)."""
        task = self._task
        given, error = task.given, task.given - task.wanted
        if task.moves_bias:  # the bias corrects any mean error, so the weights need not
            given = given - self._given_means.mean(axis=2, keepdims=True)
            error -= self._error_means.mean(axis=2, keepdims=True)
        if self._weights is None:
            return given, error
        return given * np.sqrt(self._weights), error * np.sqrt(self._weights)

    @cached_property
    def _aside(self) -> npt.NDArray[np.bool_]:
        """Which positions are held out, (positions,)."""
        return np.asarray(self._blocks % _HOLDOUT_PERIOD == _HOLDOUT_PERIOD - 1)

    @cached_property
    def _holdout(self) -> PairedMoments:
        given, error = self._parts
        return PairedMoments.of(self._original, given[:, :, self._aside], error[:, :, self._aside])

    def better_rounding(self) -> QuantizedWeight | None:
        """Returns new integers, or None where they do no better on held-out positions."""
        given, error = self._parts
        seen = PairedMoments.of(self._original, given[:, :, ~self._aside], error[:, :, ~self._aside])
        shrinkage = best_fit(seen, self._holdout)
        fitted = self._holdout.input_noise if shrinkage is None else self._holdout.noise(fitted_change(seen, shrinkage))
        now = self._centred_noise(self._task.rounded)
        if fitted >= now * (1.0 - _LEAST_GAIN):
            return None
        if self._centred_noise(self._rounded(seen, shrinkage)) >= now * (1.0 - _LEAST_GAIN):
            return None
        return self._rounded(seen.joined(self._holdout, share=float(self._aside.mean())), shrinkage)

    def mean_error(self, weight: QuantizedWeight) -> Floats:
        """Returns the mean error of the outputs, (output channels,), shrunk by its uncertainty.

        Each block of positions gives one estimate; their mean is multiplied by the positive part of 1 - variance /
        square (W. James and C. Stein, Estimation with Quadratic Loss, 1961).
        """
        lacking = self._lacking_means(weight)
        mean = lacking.mean(axis=1)
        variance = lacking.var(axis=1, ddof=1) / lacking.shape[1] if lacking.shape[1] > 1 else np.square(mean)
        shrunk: Floats = mean * np.maximum(1.0 - variance / np.maximum(np.square(mean), np.finfo(np.float64).tiny), 0.0)
        return shrunk

    def noise(self, weight: QuantizedWeight, bias_change: Floats | None) -> float:
        """Returns noise over signal on held-out positions, without the mean where the bias may move."""
        offset = 0.0
        if self._task.moves_bias:
            change = 0.0 if bias_change is None else bias_change
            offset = float(np.square(self._lacking_means(weight).mean(axis=1) - change).sum())
        return (self._centred_noise(weight) + offset) / max(self._holdout.signal, float(np.finfo(np.float32).tiny))

    def _lacking_means(self, weight: QuantizedWeight) -> Floats:
        """Returns W x - W' x' averaged over each block, (output channels, blocks)."""
        lacking = -(self._change(weight) @ self._given_means + self._original @ self._error_means)
        return lacking.reshape(self.outputs, -1).astype(np.float64)

    def _centred_noise(self, weight: QuantizedWeight) -> float:
        return self._holdout.noise(self._change(weight))

    def _change(self, weight: QuantizedWeight) -> Samples:
        return self._matrix(dequantize(weight.integers, weight.params)) - self._original

    def _rounded(self, moments: PairedMoments, shrinkage: float | None) -> QuantizedWeight:
        target = self._original.astype(np.float64)
        if shrinkage is not None:
            target = target + fitted_change(moments, shrinkage)
        task, params = self._task, self._task.rounded.params
        zero = self._spread(params.zero_point)
        steps = Steps(size=self._spread(params.scale), low=params.grid.low - zero, high=params.grid.high - zero)
        integers = self._restored(rounded_steps(target, moments, steps, self._pairs()) + zero).astype(params.grid.dtype)
        weight = replace(task.rounded, integers=integers)
        return without_saturation(weight, self._restored(target).astype(np.float32), task.orders, task.largest_pair)

    def _pairs(self) -> PairLimit | None:
        """Returns the limit on pairs of weights; None where there is none, or several orders."""
        task, params = self._task, self._task.rounded.params
        if task.largest_pair is None or not params.grid.signed or len(task.orders) != 1:
            return None
        partners = partners_in(task.orders[0], task.weight.shape, task.layer.output_axis)
        return PairLimit(partners=partners, largest=task.largest_pair, zeros=self._spread(params.zero_point)[:, :, 0])

    def _matrix(self, weight: Samples) -> Samples:
        """Reshapes a weight to (groups, outputs, inputs)."""
        layer = self._task.layer
        moved = np.moveaxis(weight, layer.output_axis, 0)
        return np.ascontiguousarray(moved.reshape(layer.groups, -1, layer.inputs))

    def _restored(self, matrix: Floats) -> Floats:
        axis = self._task.layer.output_axis
        moved_shape = np.moveaxis(self._task.weight, axis, 0).shape
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved_shape), 0, axis))

    def _spread(self, values: npt.NDArray[Any]) -> Floats:
        """Returns one value per output, (groups, outputs, 1)."""
        groups = self._original.shape[0]
        return np.broadcast_to(values.reshape(-1).astype(np.float64), (self.outputs,)).reshape(groups, -1, 1)


def _position_weights(outputs: Samples) -> Samples:
    """Returns the weight of each step of sequences, float32, (positions,), 1 on average.

    A few steps of a sequence may be far larger than all others, and their errors with them; the normalization that
    follows makes them equal, so errors are weighted relative to the step's own signal.
    """
    count = outputs.shape[2]
    power = np.square(outputs).sum(axis=(0, 1))
    median = np.median(power) if count else 0.0
    if median == 0.0:
        return np.ones(count, np.float32)
    weights = np.minimum(median / np.maximum(power, np.finfo(np.float32).tiny), 1.0)
    normalized: Samples = (weights / weights.mean()).astype(np.float32)
    return normalized


def _block_means(samples: Samples, blocks: npt.NDArray[np.int64], weights: Samples | None) -> Samples:
    """Returns the mean of each block of positions, (groups, inputs, blocks); without ``weights``, all count alike."""
    starts = np.flatnonzero(np.diff(blocks, prepend=-1))
    if weights is None:
        sums, total = np.add.reduceat(samples, starts, axis=2), np.diff(starts, append=len(blocks)).astype(np.float32)
    else:
        sums, total = np.add.reduceat(samples * weights, starts, axis=2), np.add.reduceat(weights, starts)
    means: Samples = (sums / total).astype(np.float32)
    return means
