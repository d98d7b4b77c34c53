"""Gives memory that has been freed back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys

import onnx_ir as ir

# glibc's malloc.h: the size from which memory is a mapping of its own, which ends when it is freed.
_M_MMAP_THRESHOLD = -3
_PIECE_BYTES = 1 << 20
# Weights of fewer bytes are not worth the time: Python looks at every object that there is.
_FEWEST_BYTES = 64 << 20


def return_large_pieces() -> None:
    """Has the C library return freed memory of at least a megabyte at once, from here on.

    glibc otherwise raises the size up to 32 MB as pieces are freed, and keeps those of layers' weights for later use.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _PIECE_BYTES)


def give_back_memory(model: ir.Model) -> None:
    """Ends copies of ``model`` that nothing refers to, and returns freed memory to the system; not for small models.

    Nodes and values of a graph refer to each other, so that a copy of it keeps the weights that it shares until Python
    looks for such circles. glibc keeps some of what is freed in smaller pieces.
    """
    constants = (value.const_value for value in model.graph.initializers.values())
    if sum(tensor.nbytes for tensor in constants if tensor is not None) < _FEWEST_BYTES:
        return
    gc.collect()
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
