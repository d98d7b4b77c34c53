"""GPTAQ on blocks: fits the weights of a layer to the float layer's outputs, given inputs with the noise before it."""

from __future__ import annotations

import numpy as np

from qtool.weights.blocks.gptq import gptq_blocks
from qtool.weights.blocks.quantization import BlockWeight, Matrix
from qtool.weights.blocks.ranges import least_squares_blocks
from qtool.weights.gptaq import PairedMoments, Samples, best_fit, fitted_change
from qtool.weights.gptq_layer import curvature_of

# Every so many-th run of positions tells whether what is fitted on the others holds.
_HOLDOUT_PERIOD, _RUNS = 4, 32
# Less than this does not generalize.
_LEAST_GAIN = 0.002


def gptaq_blocks(name: str, matrix: Matrix, rounded: BlockWeight, wanted: Samples, given: Samples) -> BlockWeight:
    """Returns other integers and scales where they do better on held-out positions, else ``rounded``; see ``gptaq``.

    Args:
        name: of the weight, for messages.
        matrix: the float weights, (outputs, inputs).
        rounded: the weight so far.
        wanted: the float layer's inputs, (1, inputs, positions).
        given: the quantized model's inputs at the same positions.

    Raises:
        InputError: the weight holds NaN or infinity.
    """
    count = given.shape[2]
    if count < _RUNS:
        return rounded
    aside = (np.arange(count) * _RUNS // count) % _HOLDOUT_PERIOD == _HOLDOUT_PERIOD - 1
    error, weight = given - wanted, matrix[np.newaxis]
    seen = PairedMoments.of(weight, given[:, :, ~aside], error[:, :, ~aside])
    holdout = PairedMoments.of(weight, given[:, :, aside], error[:, :, aside])
    shrinkage = best_fit(seen, holdout)
    now = _noise(holdout, matrix, rounded) * (1.0 - _LEAST_GAIN)
    if _noise(holdout, matrix, _fitted(name, matrix, rounded, seen, shrinkage)) >= now:
        return rounded
    return _fitted(name, matrix, rounded, seen.joined(holdout, share=float(aside.mean())), shrinkage)


def _noise(moments: PairedMoments, matrix: Matrix, weight: BlockWeight) -> float:
    return moments.noise((weight.dequantized() - matrix)[np.newaxis])


def _fitted(
    name: str, matrix: Matrix, rounded: BlockWeight, moments: PairedMoments, shrinkage: float | None
) -> BlockWeight:
    target = matrix if shrinkage is None else matrix + fitted_change(moments, shrinkage)[0]
    hessian = moments.hessian.astype(np.float64)
    on_grid = least_squares_blocks(name, target, rounded.grid, np.diagonal(hessian[0]))
    return gptq_blocks(target, on_grid, curvature_of(hessian))
