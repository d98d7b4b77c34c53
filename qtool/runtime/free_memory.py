"""Gives memory that has been freed back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Ends graphs that nothing refers to, and returns freed memory to the system.

    Nodes and values of a graph refer to each other, so that a copy of it keeps the weights that it shares until Python
    looks for such circles. glibc keeps what is freed in pieces of up to tens of megabytes, as weights of layers are.
    """
    gc.collect()
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
