"""Aligns arrays of different shapes, as of outputs whose lengths depend on their values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qtool.calib.specs import Array


def common_shape(one: Array, other: Array) -> tuple[int, ...]:
    """Returns the smallest shape that both fit into; that of the flat values where their overlap is small."""
    if one.ndim == other.ndim:
        shape = tuple(max(lengths) for lengths in zip(one.shape, other.shape, strict=True))
        if math.prod(shape) <= one.size + other.size:
            return shape
    return (max(one.size, other.size),)


def laid_out(array: Array, shape: Sequence[int]) -> Array:
    """Returns a float array padded with zeros to a larger shape."""
    if len(shape) != array.ndim:
        array = array.reshape(-1)
    found = np.zeros(tuple(shape), array.dtype)
    found[tuple(slice(length) for length in array.shape)] = array
    return found


def shared(one: Array, other: Array) -> tuple[Array, Array]:
    """Returns the overlapping part of both."""
    if one.ndim != other.ndim:
        one, other = one.reshape(-1), other.reshape(-1)
    part = tuple(slice(min(lengths)) for lengths in zip(one.shape, other.shape, strict=True))
    return one[part], other[part]
