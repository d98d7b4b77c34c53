"""Rounds changed weights in blocks again, on scales that are fitted to the new values.

With few bits a step is larger than most changes of an adapter. Rounding what the integers stood for plus the change, on
the scales that it had, would give the same integers again. The sum of the float weight and the change, on new scales,
keeps the change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.qdq.packed_integers import is_packed
from qtool.qdq.stored_integers import StoredIntegers
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import BlockWeight, in_blocks, with_scales
from qtool.weights.blocks.ranges import least_squares_blocks

Array = npt.NDArray[Any]


def is_fitted(node: ir.Node, stored: StoredIntegers) -> bool:
    """Returns whether the weight of ``node`` is a matrix in blocks, or of few bits, whose scales can be fitted."""
    return stored.integers.ndim == 2 and stored.scale.size > 1 and (is_packed(node) or stored.block > 0)


def fitted(stored: StoredIntegers, exact: Array, changed: Array, name: str) -> BlockWeight:
    """Returns ``exact`` on scales with the least squared error; blocks without a change keep their integers.

    Args:
        stored: the weight as it is; its bits, blocks and symmetry stay.
        exact: the values to store, in its shape.
        changed: where they differ from the old ones; in its shape.
        name: the weight, for errors.

    Raises:
        InputError: a value is NaN or infinite.
    """
    old = _as_blocks(stored)
    turned = stored.axis == 0
    matrix = np.ascontiguousarray((exact.T if turned else exact).astype(np.float32))
    grid = old.grid
    new = least_squares_blocks(name, matrix, grid)
    scales, middle = new.scales, grid.middle
    if grid.symmetric and (old.scales > 0).all():
        # Some runtimes take no negative scales; the positive side has one integer less.
        scales = np.where(scales < 0, -scales * (middle / (middle - 1)), scales)
    scales = scales.astype(stored.scale.dtype).astype(np.float32)
    rounded = with_scales(matrix, grid, scales, new.zero_points)
    touched = in_blocks((changed.T if turned else changed).astype(np.float64), grid).any(axis=2)
    everywhere = np.repeat(touched, grid.length(matrix.shape[1]), axis=1)[:, : matrix.shape[1]]
    return BlockWeight(
        integers=np.where(everywhere, rounded.integers, old.integers),
        scales=np.where(touched, scales, old.scales),
        zero_points=np.where(touched, rounded.zero_points, old.zero_points),
        grid=grid,
    )


def as_stored(weight: BlockWeight, stored: StoredIntegers) -> tuple[Array, Array, Array]:
    """Returns integers, scales and zero points in the orientation and the types of ``stored``."""
    middle = weight.grid.middle if stored.signed else 0
    integers, zero = weight.integers.astype(np.int16) - middle, weight.zero_points.astype(np.float64) - middle
    scales = weight.scales
    if stored.axis == 0:
        integers, scales, zero = integers.T, scales.T, zero.T
    return integers.astype(stored.integers.dtype), scales.astype(stored.scale.dtype), zero


def block_form(stored: StoredIntegers, integers: Array, scale: Array) -> BlockWeight:
    """Returns other integers and scales in the orientation of layers: (outputs, inputs)."""
    return _as_blocks(replace(stored, integers=integers, scale=scale))


def _as_blocks(stored: StoredIntegers) -> BlockWeight:
    turned, middle = stored.axis == 0, 1 << (stored.bits - 1) if stored.signed else 0
    integers, scale, zero = stored.integers.astype(np.int16) + middle, stored.scale, stored.zero + middle
    if turned:
        integers, scale, zero = integers.T, scale.T, zero.T
    symmetric = bool((zero == 1 << (stored.bits - 1)).all())
    return BlockWeight(
        integers=np.ascontiguousarray(integers).astype(np.uint8),
        scales=np.ascontiguousarray(scale).astype(np.float32),
        zero_points=np.ascontiguousarray(zero).astype(np.uint8),
        grid=BlockGrid(bits=stored.bits, block=stored.block, symmetric=symmetric),
    )
