"""Arithmetic of permutations of axes.

A tensor that should be ``logical`` may be kept as ``stored`` with a permutation ``p``, so that ``logical`` is
``Transpose(stored, p)``: axis ``i`` of the one is axis ``p[i]`` of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Perm: TypeAlias = tuple[int, ...]


def identity(rank: int) -> Perm:
    """Returns the identity permutation."""
    return tuple(range(rank))


def is_identity(perm: Perm) -> bool:
    """Returns whether a permutation is the identity."""
    return perm == identity(len(perm))


def inverse(perm: Perm) -> Perm:
    """Returns the inverse of ``perm``."""
    found = [0] * len(perm)
    for axis, source in enumerate(perm):
        found[source] = axis
    return tuple(found)


def then(first: Perm, second: Perm) -> Perm:
    """Returns the one permutation that does what two Transpose do, one after the other."""
    return tuple(first[axis] for axis in second)


def between(kept: Perm, wanted: Perm) -> Perm:
    """Returns the Transpose that makes of a tensor kept with one permutation the same kept with another."""
    return then(kept, inverse(wanted))


def without(perm: Perm, removed: Sequence[int]) -> Perm:
    """Returns the permutation that is left when logical axes go, and with them the stored ones that they are."""
    left = sorted(perm[axis] for axis in range(len(perm)) if axis not in removed)
    places = {stored: place for place, stored in enumerate(left)}
    return tuple(places[perm[axis]] for axis in range(len(perm)) if axis not in removed)


def with_new(perm: Perm, added: Sequence[int]) -> Perm:
    """Returns the permutation with new axes, which are ``added`` in the logical tensor and in the stored one alike."""
    rank = len(perm) + len(added)
    free = [axis for axis in range(rank) if axis not in added]
    old = iter(perm)
    return tuple(axis if axis in added else free[next(old)] for axis in range(rank))
