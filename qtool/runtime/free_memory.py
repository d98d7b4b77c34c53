"""Gives memory that has been freed back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys

# glibc's malloc.h: the size from which memory is a mapping of its own, which ends when it is freed.
_M_MMAP_THRESHOLD = -3
_PIECE_BYTES = 1 << 20


def return_large_pieces() -> None:
    """Has the C library return freed memory of at least a megabyte at once, from here on.

    glibc otherwise raises the size up to 32 MB as pieces are freed, and keeps those of layers' weights for later use.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _PIECE_BYTES)


def give_back_memory() -> None:
    """Ends graphs that nothing refers to, and returns freed memory to the system.

    Nodes and values of a graph refer to each other, so that a copy of it keeps the weights that it shares until Python
    looks for such circles. glibc keeps some of what is freed in smaller pieces.
    """
    gc.collect()
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
