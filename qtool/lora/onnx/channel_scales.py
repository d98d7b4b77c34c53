"""Fits the factors by which the channels of a stored weight differ from those of a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Rounding to integers, clipping included, never moves the factor of a whole tensor this far from 1.
# The best four values of a normal distribution are 0.88 times the weights on average.
_FACTOR_OF_ROUNDING = 0.1
# Fitting the factors of scaled input channels reduces the error to this fraction; of rounding alone, most remains.
_EXPLAINED = 0.5
_LEAST_ROWS = 8


def channel_scale(array: Array, weight: Array, tolerance: float) -> Array | None:
    """Returns c for which array ≈ c · weight, one number per output channel; None where there is none.

    Args:
        array: the graph's tensor.
        weight: the checkpoint's tensor, in the same shape, outputs first.
        tolerance: the largest error of a channel, as a share of its norm.
    """
    rows, seen = _rows(weight), _rows(array)
    power = np.einsum("ij,ij->i", rows, rows)
    if not power.all():
        return None
    scale: Array = np.einsum("ij,ij->i", seen, rows) / power
    left = np.linalg.norm(seen - scale[:, None] * rows, axis=1)
    whole: Array = np.linalg.norm(seen, axis=1)
    return scale if bool(np.all(left <= tolerance * whole)) and bool(whole.all()) else None


def is_one(scale: Array, array: Array, weight: Array) -> bool:
    """Returns whether array = weight except for rounding: all factors are 1 within their standard error."""
    rows, seen = _rows(weight), _rows(array)
    left = np.linalg.norm(seen - scale[:, None] * rows, axis=1)
    # Five times the standard error of a factor fitted by least squares.
    return bool(np.all(np.abs(scale - 1) <= 5 * left / (np.sqrt(rows.shape[1]) * np.linalg.norm(rows, axis=1))))


def whole_scale(array: Array, weight: Array, bits: int) -> float:
    """Returns c for which array ≈ c · weight, 1 where rounding to integers of ``bits`` explains the difference."""
    rows, seen = _rows(weight), _rows(array)
    factor = float((rows * seen).sum() / (rows * rows).sum())
    return factor if abs(factor - 1) > _FACTOR_OF_ROUNDING * (3 if bits < 4 else 1) else 1.0


def inputs_differ(array: Array, weight: Array, scale: Array) -> bool:
    """Returns whether the inputs of the weight were scaled, too: factors for them explain most of the error."""
    expected, seen = _rows(weight) * scale.reshape(-1, 1), _rows(array)
    power = np.einsum("ij,ij->j", expected, expected)
    if len(expected) < _LEAST_ROWS or not power.all():
        return False
    fitted = expected * (np.einsum("ij,ij->j", seen, expected) / power)
    return bool(np.linalg.norm(seen - fitted) < _EXPLAINED * np.linalg.norm(seen - expected))


def _rows(array: Array) -> Array:
    rows: Array = array.reshape(array.shape[0], -1).astype(np.float64)
    return rows
