"""Reduces garbage collection while a library creates many objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# With Python's default of 700, creating hundreds of thousands of nodes triggers many full collections.
_OBJECTS_BETWEEN_COLLECTIONS = 50_000


@contextmanager
def few_collections() -> Iterator[None]:
    """Makes the garbage collector run less often until the block ends; one that is off stays off."""
    thresholds = gc.get_threshold()
    if 0 < thresholds[0] < _OBJECTS_BETWEEN_COLLECTIONS:
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
