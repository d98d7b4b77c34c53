"""Converts outputs to arrays, so that sequences, maps and empty optionals can be compared like tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qtool.calib.specs import Array


def plain(value: Any) -> Array:
    """Returns an output as one array.

    A sequence of tensors becomes their concatenated values, of the shape (values,). A sequence of maps, such as
    ZipMap's, becomes (maps, keys), a single map (keys,), without the keys. An empty optional becomes an empty array.
    """
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        return np.zeros(0, np.float32)
    if isinstance(value, Mapping):
        return _of_numbers(list(value.values()))
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return np.asarray(value)
    if value and all(isinstance(one, Mapping) for one in value):
        return _of_numbers([list(one.values()) for one in value])
    parts = [plain(one).reshape(-1) for one in value]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _of_numbers(values: Any) -> Array:
    """Makes an array of Python numbers, which runtimes hold in 32 bits, or of strings."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array.astype(np.object_) if array.dtype.kind in "US" else array
