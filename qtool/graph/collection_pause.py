"""Keeps Python from searching for cycles while long graphs are built, which is a third of the time that takes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

# The objects of shorter graphs are few.
_FEWEST_NODES = 10_000


@contextmanager
def collection_paused(model: ir.Model) -> Iterator[None]:
    """Pauses the collection of cyclic garbage until the block ends where ``model`` has very many nodes."""
    if len(model.graph) < _FEWEST_NODES or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
