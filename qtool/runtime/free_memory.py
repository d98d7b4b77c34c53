"""Gives memory that has been freed back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back_memory() -> None:
    """Returns freed memory to the system where the C library keeps it, as glibc does with what is freed in pieces.

    Tens of megabytes, such as a layer's weights and their temporary forms, stay with the process otherwise, and add up
    from one step of a search to the next.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
