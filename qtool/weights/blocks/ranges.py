"""Chooses the range of each block by the squared error of its weights, which clips what costs too many steps.

Where there is calibration data, the error of each input counts by its mean square: that is the diagonal of the error of
the layer's products.
"""

from __future__ import annotations

from collections.abc import Iterator

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
_SHARES = np.linspace(1.0, 0.52, 13, dtype=np.float32)
# With so many bits all of the clipping and fitting gains tenths of a decibel.
_BITS_WITHOUT_CLIPPING = 8
# Weights of which the candidates are held at once.
_VALUES = 1 << 18
_TINY = np.finfo(np.float32).tiny


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
    """Returns the scales and zero points of the candidates with the least error, (outputs, blocks) each.

    With the best scale of its integers, a block's error is Σ h·w² - (Σ h·w·(q - z))² / Σ h·(q - z)²: the last term is
    what is compared.
    """
    low, high = np.minimum(blocks.min(axis=2), 0.0), np.maximum(blocks.max(axis=2), 0.0)
    scales, zeros = grid_of(grid, low, high)
    inverse = 1.0 / (grid_of(grid, -np.maximum(-low, high), np.zeros_like(high))[0] if grid.symmetric else scales)
    targets = blocks if importance is None else importance * blocks
    gained = np.zeros_like(scales)
    for share in _SHARES:
        for sign, steps in _candidates(blocks, inverse / share, zeros, grid):
            power = _sums(steps if importance is None else importance * steps, steps)
            product = _sums(targets, steps)
            fitted = product / np.maximum(power, _TINY)
            gain = fitted * product
            better = gain > gained
            np.copyto(gained, gain, where=better)
            np.copyto(scales, sign * fitted, where=better)
    return scales, zeros


def _candidates(
    blocks: Matrix, inverse: Matrix, zeros: npt.NDArray[np.uint8], grid: BlockGrid
) -> Iterator[tuple[int, Matrix]]:
    """Yields the sign of the scales, and the whole steps from zero times that sign, for 1 / ``inverse`` as their size.

    Symmetric grids reach one step further on one side, which may be either.
    """
    steps = blocks * inverse[:, :, np.newaxis]
    # Bounds that are the same everywhere take numpy an eighth of the time.
    if not grid.symmetric:
        zero = zeros[:, :, np.newaxis].astype(np.float32)
        steps += zero
        np.clip(np.rint(steps, out=steps), 0, grid.highest, out=steps)
        steps -= zero
        yield 1, steps
        return
    np.rint(steps, out=steps)
    further = grid.middle
    yield 1, np.clip(steps, -further, further - 1)
    yield -1, np.clip(steps, 1 - further, further, out=steps)


def _sums(first: Matrix, second: Matrix) -> Matrix:
    """Returns the sum of the products in each block, (outputs, blocks)."""
    sums: Matrix = np.einsum("obi,obi->ob", first, second)
    return sums
