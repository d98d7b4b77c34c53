"""Chooses the range of each block by the squared error of its weights, which clips what costs too many steps.

Where there is calibration data, the error of each input counts by its mean square: that is the diagonal of the error of
the layer's products.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.in_threads import in_threads
from qtool.weights.blocks.quantization import (
    BlockWeight,
    Matrix,
    grid_of,
    in_blocks,
    round_blocks,
    row_parts,
    with_scales,
)

# Fractions of a block's range that are tried; with few bits much is worth clipping.
_SHARES = np.linspace(1.0, 0.52, 13)
# With so many bits all of the clipping and fitting gains a tenth of a decibel.
_BITS_WITHOUT_CLIPPING = 8
# Weights of which the candidates are held at once.
_VALUES = 1 << 16


def least_squares_blocks(
    name: str, matrix: Matrix, grid: BlockGrid, importance: npt.NDArray[np.float64] | None = None
) -> BlockWeight:
    """Returns the weight on the grids with the least weighted squared error among some, scales fitted in closed form.

    With the integers q given, the best scale of a block is Σ h·w·(q - z) / Σ h·(q - z)².

    Args:
        name: of the weight, for messages.
        matrix: (outputs, inputs).
        grid: the integers to use.
        importance: mean square of each input, (inputs,); None for the same of all.

    Raises:
        InputError: the weight holds NaN or infinity.
    """
    found = round_blocks(name, matrix, grid)
    if grid.bits == _BITS_WITHOUT_CLIPPING and importance is None:
        return found
    spread = None
    if importance is not None:
        # Inputs that were always zero in the data still count a little.
        weights = importance + 1e-4 * importance.mean() + 1e-30
        spread = in_blocks(weights[np.newaxis], grid)
    scales, zero_points = found.scales.copy(), found.zero_points.copy()

    def fitted(rows: slice) -> None:
        scales[rows], zero_points[rows] = _fitted(in_blocks(matrix[rows], grid), spread, grid)

    in_threads(fitted, row_parts(matrix, values=_VALUES))
    return with_scales(matrix, grid, scales, zero_points)


def _fitted(blocks: Matrix, importance: Matrix | None, grid: BlockGrid) -> tuple[Matrix, npt.NDArray[np.uint8]]:
    low, high = np.minimum(blocks.min(axis=2), 0.0), np.maximum(blocks.max(axis=2), 0.0)
    best_error = np.full(low.shape, np.inf, np.float32)
    best_scales, best_zeros = grid_of(grid, low, high)
    sides = [(low, high)]
    if grid.symmetric:
        # The other side may have the longer reach.
        largest = np.maximum(-low, high)
        sides = [(-largest, np.zeros_like(high)), (np.zeros_like(low), largest)]
    for lows, highs in sides:
        for share in _SHARES:
            scales, zeros = grid_of(grid, lows * share, highs * share)
            steps = _steps(blocks, scales, zeros, grid)
            weighted = steps if importance is None else importance * steps
            power, product = _sums(weighted, steps), _sums(weighted, blocks)
            with np.errstate(divide="ignore", invalid="ignore"):
                refined = np.where(power > 0.0, product / power, scales)
            refined = np.where(np.abs(refined) < np.finfo(np.float32).tiny, scales, refined).astype(np.float32)
            lost = _steps(blocks, refined, zeros, grid)
            lost *= refined[:, :, np.newaxis]
            np.subtract(blocks, lost, out=lost)
            error = _sums(lost if importance is None else importance * lost, lost)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_scales, best_zeros = np.where(better, refined, best_scales), np.where(better, zeros, best_zeros)
    return best_scales, best_zeros


def _sums(first: Matrix, second: Matrix) -> Matrix:
    """Returns the sum of the products in each block, (outputs, blocks)."""
    sums: Matrix = np.einsum("obi,obi->ob", first, second)
    return sums


def _steps(blocks: Matrix, scales: Matrix, zeros: npt.NDArray[np.uint8], grid: BlockGrid) -> Matrix:
    """Returns the whole steps from zero, within the grid."""
    # Bounds that are the same everywhere take numpy an eighth of the time.
    zero = zeros[:, :, np.newaxis].astype(np.float32)
    steps = blocks / scales[:, :, np.newaxis]
    steps += zero
    np.clip(np.rint(steps, out=steps), 0, grid.highest, out=steps)
    steps -= zero
    return steps
