"""Block-wise quantization of weight matrices: a scale, and where asymmetric a zero point, for each block of inputs.

A weight w becomes the integer q with w ≈ scale · (q - zero point), all integers unsigned, which is how onnxruntime's
MatMulNBits stores them. A symmetric block has its zero point in the middle, 2^(bits-1); since the grid reaches one step
further down than up, the sign of its scale decides which side has the longer reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qtool.errors import InputError
from qtool.formats.scratch import kept_aside
from qtool.weights.blocks.grid import BlockGrid

Floats: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.uint8]

# Weights that are rounded at once, few enough to stay in the processor's cache.
_MOST_VALUES = 1 << 17
# Neighbours in the memory of a transposed weight that are rounded together.
_OUTPUTS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeight:
    """A weight matrix as integers.

    Attributes:
        integers: uint8, (outputs, inputs).
        scales: float32, (outputs, blocks).
        zero_points: uint8, (outputs, blocks).
        grid: what the integers are.
    """

    integers: Integers
    scales: Matrix
    zero_points: Integers
    grid: BlockGrid

    @property
    def size(self) -> float:
        """Bytes of integers, scales and zero points as they are stored."""
        zeros = 0 if self.grid.symmetric else self.zero_points.size * self.grid.bits / 8
        return self.integers.size * self.grid.bits / 8 + self.scales.nbytes + zeros

    def dequantized(self) -> Matrix:
        """Returns the weights that the integers stand for, float32, (outputs, inputs)."""
        inputs = self.integers.shape[1]
        steps = self.integers.astype(np.float32) - per_input(self.zero_points, self.grid, inputs).astype(np.float32)
        floats: Matrix = steps * per_input(self.scales, self.grid, inputs)
        return floats


def per_input(values: npt.NDArray[Any], grid: BlockGrid, inputs: int) -> npt.NDArray[Any]:
    """Repeats the values of blocks, (outputs, blocks), for each of their inputs, (outputs, inputs)."""
    return np.repeat(values, grid.length(inputs), axis=1)[:, :inputs]


def in_blocks(matrix: npt.NDArray[Any], grid: BlockGrid, fill: float = 0.0) -> Matrix:
    """Returns ``matrix``, (outputs, inputs), as float32, (outputs, blocks, length), the last block filled up."""
    outputs, inputs = matrix.shape
    length = grid.length(inputs)
    if inputs % length:
        matrix = np.pad(matrix, [(0, 0), (0, -inputs % length)], constant_values=fill)
    return matrix.reshape(outputs, -1, length).astype(np.float32, copy=False)


def round_blocks(name: str, matrix: Matrix, grid: BlockGrid) -> BlockWeight:
    """Rounds to nearest (RTN): each block's grid reaches from its smallest to its largest weight, zero included.

    Args:
        name: of the weight, for messages.
        matrix: (outputs, inputs).
        grid: the integers to use.

    Raises:
        InputError: the weight holds NaN or infinity.
    """
    if not np.isfinite(matrix).all():
        raise InputError(
            f"the weight '{name}' holds NaN or infinity", fix="repair the model, or keep its node float with --exclude"
        )
    blocks = -(-matrix.shape[1] // grid.length(matrix.shape[1]))
    low, high = np.empty((len(matrix), blocks), np.float32), np.empty((len(matrix), blocks), np.float32)
    for rows, columns, inputs in _tiles(matrix, grid):
        part = in_blocks(matrix[rows, inputs], grid)
        low[rows, columns], high[rows, columns] = part.min(axis=2), part.max(axis=2)
    return with_ranges(matrix, grid, np.minimum(low, 0.0), np.maximum(high, 0.0))


def with_ranges(matrix: Matrix, grid: BlockGrid, low: Matrix, high: Matrix) -> BlockWeight:
    """Rounds to nearest on grids that reach from ``low``, at most 0, to ``high``, at least 0, (outputs, blocks)."""
    return with_scales(matrix, grid, *grid_of(grid, low, high))


def grid_of(grid: BlockGrid, low: Matrix, high: Matrix) -> tuple[Matrix, Integers]:
    """Returns the scales and zero points, (outputs, blocks), of grids that reach from ``low`` to ``high``."""
    if grid.symmetric:
        # The lowest integer is ``middle`` steps from zero, the highest one step less: the larger side gets more.
        extreme = np.where(-low > high, low, high)
        scales = -extreme / grid.middle
        zero_points = np.full(scales.shape, grid.middle, np.uint8)
    else:
        scales = (high - low) / grid.highest
        with np.errstate(divide="ignore", invalid="ignore"):
            zero_points = np.where(scales > 0.0, np.rint(-low / scales), 0.0).clip(0, grid.highest).astype(np.uint8)
    smallest = float(np.finfo(np.float32).tiny)
    scales = np.where(np.abs(scales) < smallest, 1.0, scales)
    return scales.astype(np.float32), zero_points


def with_scales(matrix: Matrix, grid: BlockGrid, scales: Matrix, zero_points: Integers) -> BlockWeight:
    """Rounds to nearest on given grids, (outputs, blocks) each."""
    integers = np.empty(matrix.shape, np.uint8)
    for rows, columns, inputs in _tiles(matrix, grid):
        steps = in_blocks(matrix[rows, inputs], grid) / scales[rows, columns, np.newaxis]
        steps += zero_points[rows, columns, np.newaxis].astype(np.float32)
        np.clip(np.rint(steps, out=steps), 0, grid.highest, out=steps)
        part = integers[rows, inputs]
        part[...] = steps.astype(np.uint8).reshape(len(steps), -1)[:, : part.shape[1]]
    return BlockWeight(
        integers=kept_aside(integers), scales=kept_aside(scales), zero_points=kept_aside(zero_points), grid=grid
    )


def _tiles(matrix: Matrix, grid: BlockGrid) -> Iterator[tuple[slice, slice, slice]]:
    """Yields the outputs, blocks and inputs of parts of a matrix that stay in the cache, in the order of its memory."""
    inputs = matrix.shape[1]
    length = grid.length(inputs)
    blocks = -(-inputs // length)
    turned = matrix.flags.f_contiguous and not matrix.flags.c_contiguous
    wide = min(max(_MOST_VALUES // (_OUTPUTS_AT_ONCE * length), 1), blocks) if turned else blocks
    for first in range(0, blocks, wide):
        columns = slice(first, first + wide)
        part = slice(first * length, min((first + wide) * length, inputs))
        for rows in row_parts(matrix[:, part]):
            yield rows, columns, part


def row_parts(matrix: Matrix, *, values: int = _MOST_VALUES) -> Iterator[slice]:
    """Yields parts of the outputs with about so many ``values``."""
    rows = max(values // max(matrix.shape[1], 1), 1)
    for start in range(0, len(matrix), rows):
        yield slice(start, start + rows)


def rescaled_outputs(weight: BlockWeight, factors: Floats) -> BlockWeight:
    """Returns the weight with each output multiplied by a factor, (outputs,): its integers stay the same."""
    scales = weight.scales.astype(np.float64) * factors[:, np.newaxis]
    return replace(weight, scales=scales.astype(np.float32))
