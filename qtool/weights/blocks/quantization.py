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
from qtool.weights.blocks.in_threads import in_threads

Floats: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.uint8]

# Weights that are rounded at once, few enough to stay in the processor's cache.
_MOST_VALUES = 1 << 17
# Neighbours in the memory of a transposed weight that are rounded together, for so many inputs: what is written of an
# output then stands together. So many outputs are turned at a time.
_OUTPUTS_AT_ONCE, _INPUTS_AT_ONCE = 1024, 512
_TURNED_AT_ONCE = 128


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
    grids = _Grids.empty(matrix.shape, grid)

    def rounded(tile: _Tile) -> None:
        parts = [tile.part(matrix, piece) for piece in tile.pieces]
        low = np.minimum.reduce([part.min(axis=tile.inner) for part in parts])
        high = np.maximum.reduce([part.max(axis=tile.inner) for part in parts])
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InputError(
                f"the weight '{name}' holds NaN or infinity",
                fix="repair the model, or keep its node float with --exclude",
            )
        grids.put(tile, *grid_of(grid, np.minimum(low, 0.0), np.maximum(high, 0.0)))
        for piece, part in zip(tile.pieces, parts, strict=True):
            grids.round(tile, piece, part)

    in_threads(rounded, _tiles(matrix, grid))
    return grids.weight()


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
    grids = _Grids(grid, np.empty(matrix.shape, np.uint8), scales, zero_points)

    def rounded(tile: _Tile) -> None:
        for piece in tile.pieces:
            grids.round(tile, piece, tile.part(matrix, piece))

    in_threads(rounded, _tiles(matrix, grid))
    return grids.weight()


@dataclass(frozen=True, slots=True)
class _Tile:
    """Outputs and blocks of a matrix, seen in the order of its memory.

    Attributes:
        rows: the outputs.
        columns: the blocks.
        pieces: their inputs, in parts that stay in the cache; more than one only of a single block.
        turned: whether outputs are neighbours in memory; otherwise inputs are.
        length: the inputs of a block.
    """

    rows: slice
    columns: slice
    pieces: tuple[slice, ...]
    turned: bool
    length: int

    @property
    def inner(self) -> int:
        """The axis of the inputs of a block."""
        return 1 if self.turned else 2

    def part(self, matrix: npt.NDArray[Any], inputs: slice) -> Matrix:
        """Returns float32, (blocks, inputs, outputs) where turned, and else (outputs, blocks, inputs)."""
        part = matrix[self.rows, inputs]
        part = part.T if self.turned else part
        if len(self.pieces) > 1:
            return np.asarray(part[np.newaxis] if self.turned else part[:, np.newaxis], np.float32)
        missing = -part.shape[0 if self.turned else 1] % self.length
        if missing:
            part = np.pad(part, [(0, missing), (0, 0)] if self.turned else [(0, 0), (0, missing)])
        shape = (-1, self.length, part.shape[1]) if self.turned else (len(part), -1, self.length)
        return np.asarray(part.reshape(shape), np.float32)

    def per_part(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the values of its blocks, of all (outputs, blocks), so that they go with a part."""
        own = values[self.rows, self.columns]
        return np.ascontiguousarray(own.T)[:, np.newaxis] if self.turned else own[:, :, np.newaxis]


@dataclass(frozen=True, slots=True)
class _Grids:
    """A weight that is being rounded, see ``BlockWeight``."""

    grid: BlockGrid
    integers: Integers
    scales: Matrix
    zero_points: Integers

    @staticmethod
    def empty(shape: tuple[int, ...], grid: BlockGrid) -> _Grids:
        """Returns what is to be filled for a matrix of ``shape``, (outputs, inputs)."""
        blocks = (shape[0], -(-shape[1] // grid.length(shape[1])))
        return _Grids(grid, np.empty(shape, np.uint8), np.empty(blocks, np.float32), np.empty(blocks, np.uint8))

    def put(self, tile: _Tile, scales: Matrix, zero_points: Integers) -> None:
        """Sets the grids of a tile, (blocks, outputs) where turned, and else (outputs, blocks)."""
        own = (scales.T, zero_points.T) if tile.turned else (scales, zero_points)
        self.scales[tile.rows, tile.columns], self.zero_points[tile.rows, tile.columns] = own

    def round(self, tile: _Tile, inputs: slice, part: Matrix) -> None:
        """Rounds a part of a tile on the tile's grids."""
        steps = part / tile.per_part(self.scales)
        steps += tile.per_part(self.zero_points).astype(np.float32)
        np.clip(np.rint(steps, out=steps), 0, self.grid.highest, out=steps)
        integers, found = self.integers[tile.rows, inputs], steps.astype(np.uint8)
        if not tile.turned:
            integers[...] = found.reshape(len(found), -1)[:, : integers.shape[1]]
            return
        found = found.reshape(-1, found.shape[2])[: integers.shape[1]]
        for first in range(0, found.shape[1], _TURNED_AT_ONCE):
            integers[first : first + _TURNED_AT_ONCE] = found[:, first : first + _TURNED_AT_ONCE].T

    def weight(self) -> BlockWeight:
        """Returns the weight, its arrays kept aside."""
        return BlockWeight(
            integers=kept_aside(self.integers),
            scales=kept_aside(self.scales),
            zero_points=kept_aside(self.zero_points),
            grid=self.grid,
        )


def _tiles(matrix: Matrix, grid: BlockGrid) -> Iterator[_Tile]:
    """Yields parts of a matrix that stay in the cache, in the order of its memory."""
    inputs = matrix.shape[1]
    length = grid.length(inputs)
    blocks = -(-inputs // length)
    if not matrix.flags.f_contiguous or matrix.flags.c_contiguous:
        for rows in row_parts(matrix):
            yield _Tile(rows, slice(0, blocks), (slice(0, inputs),), turned=False, length=length)
        return
    wide = max(_INPUTS_AT_ONCE // length, 1)
    for first in range(0, blocks, wide):
        end = min((first + wide) * length, inputs)
        starts = range(first * length, end, _INPUTS_AT_ONCE if length > _INPUTS_AT_ONCE else end)
        pieces = tuple(slice(start, min(start + starts.step, end)) for start in starts)
        for start in range(0, len(matrix), _OUTPUTS_AT_ONCE):
            rows = slice(start, start + _OUTPUTS_AT_ONCE)
            yield _Tile(rows, slice(first, first + wide), pieces, turned=True, length=length)


def row_parts(matrix: Matrix, *, values: int = _MOST_VALUES) -> Iterator[slice]:
    """Yields parts of the outputs with about so many ``values``."""
    rows = max(values // max(matrix.shape[1], 1), 1)
    for start in range(0, len(matrix), rows):
        yield slice(start, start + rows)


def rescaled_outputs(weight: BlockWeight, factors: Floats) -> BlockWeight:
    """Returns the weight with each output multiplied by a factor, (outputs,): its integers stay the same."""
    scales = weight.scales.astype(np.float64) * factors[:, np.newaxis]
    return replace(weight, scales=scales.astype(np.float32))
