"""Finds arrays that hold the same bytes among many large ones, which stay where they are until they are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Key = TypeVar("Key")

# Values whose bytes tell most arrays apart.
_SAMPLED = 512
# Bytes that are compared at a time.
_BLOCK_BYTES = 1 << 24


class EqualArrays(Generic[Key]):
    """Holds keys of arrays by some of their values; the others are compared when these agree."""

    def __init__(self, array_of: Callable[[Key], Array]) -> None:
        """Starts with none; ``array_of`` returns the array of a key whenever it is needed."""
        self._array_of = array_of
        self._keys: dict[bytes, list[Key]] = {}
        self._samples: dict[Key, bytes] = {}
        self._forms: set[tuple[str, tuple[int, ...]]] = set()

    def add(self, key: Key, array: Array) -> None:
        """Adds a key."""
        self._samples[key] = _sample(array)
        self._keys.setdefault(self._samples[key], []).append(key)
        self._forms.add((str(array.dtype), array.shape))

    def has_form(self, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> bool:
        """Returns whether there is any array of this type and shape."""
        return (str(np.dtype(dtype)), shape) in self._forms

    def equal_to(self, array: Array) -> Iterator[Key]:
        """Yields the keys whose arrays have the type, the shape and the bytes of ``array``, in the order of adding."""
        for key in self._keys.get(_sample(array), ()):
            if _same_bytes(array, self._array_of(key)):
                yield key

    def others_like(self, key: Key) -> list[Key]:
        """Returns the other keys with the same array as ``key``, which is read only if there may be any."""
        sample = self._samples[key] if key in self._samples else _sample(self._array_of(key))
        others = [other for other in self._keys.get(sample, ()) if other != key]
        return [other for other in others if _same_bytes(self._array_of(key), self._array_of(other))]


def _sample(array: Array) -> bytes:
    """Returns a digest of type, shape and some values."""
    mark = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    if array.ndim == 0:
        mark.update(array.tobytes())
    elif array.size:
        places = np.unique(np.linspace(0, array.size - 1, min(_SAMPLED, array.size)).astype(np.int64))
        # Taken by index: a transposed array would be copied whole to be flattened.
        mark.update(np.ascontiguousarray(array[np.unravel_index(places, array.shape)]).tobytes())
    return mark.digest()


def _same_bytes(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.ndim == 0:
        return one.tobytes() == other.tobytes()
    rows = max(_BLOCK_BYTES // max(one[:1].nbytes, 1), 1)
    return all(
        np.ascontiguousarray(one[row : row + rows]).tobytes() == np.ascontiguousarray(other[row : row + rows]).tobytes()
        for row in range(0, len(one), rows)
    )
