"""Lays arrays of different shapes over each other, as those of outputs whose lengths depend on their values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qtool.calib.specs import Array


def common_shape(one: Array, other: Array) -> tuple[int, ...]:
    """Returns the smallest shape that both fit into; that of the flat values where they have little in common."""
    if one.ndim == other.ndim:
        shape = tuple(max(lengths) for lengths in zip(one.shape, other.shape, strict=True))
        if math.prod(shape) <= one.size + other.size:
            return shape
    return (max(one.size, other.size),)


def laid_out(array: Array, shape: Sequence[int]) -> Array:
    """Returns a float array in a larger shape: its values begin at the same corner, and zeros stand for the others."""
    if len(shape) != array.ndim:
        array = array.reshape(-1)
    found = np.zeros(tuple(shape), array.dtype)
    found[tuple(slice(length) for length in array.shape)] = array
    return found


def shared(one: Array, other: Array) -> tuple[Array, Array]:
    """Returns the part of both that has places in either one."""
    if one.ndim != other.ndim:
        one, other = one.reshape(-1), other.reshape(-1)
    part = tuple(slice(min(lengths)) for lengths in zip(one.shape, other.shape, strict=True))
    return one[part], other[part]
