"""Keeps Python's garbage collector from searching for cycles all the time where a library makes many objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Python's own 700 make it go through everything over and over while hundreds of thousands of nodes come to be.
_OBJECTS_BETWEEN_COLLECTIONS = 50_000


@contextmanager
def few_collections() -> Iterator[None]:
    """Lets the garbage collector run more rarely until the block ends; one that is off stays off."""
    thresholds = gc.get_threshold()
    if 0 < thresholds[0] < _OBJECTS_BETWEEN_COLLECTIONS:
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
