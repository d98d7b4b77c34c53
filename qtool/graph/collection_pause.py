"""Keeps Python from searching for cycles where there are none.

While long graphs are built, that is a third of the time that takes; in a search of minutes, what the libraries hold is
looked at again and again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# The objects of shorter graphs are few.
_FEWEST_NODES = 5000


@contextmanager
def collection_paused(nodes: int) -> Iterator[None]:
    """Pauses the collection of cyclic garbage until the block ends, where the graph at hand has very many nodes.

    All objects made meanwhile are looked at once when it ends.
    """
    if nodes < _FEWEST_NODES or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Collects recent garbage, and looks only at objects that the block makes until it ends."""
    # Not at all objects: where a process quantizes one model after another, that would take longer than it saves.
    gc.collect(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def leaving_no_garbage() -> Iterator[None]:
    """Collects the cyclic garbage that the block makes when it ends, where the collection is paused.

    Objects from before it are not looked at, so that this takes time for those of the block only.
    """
    if gc.isenabled():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
