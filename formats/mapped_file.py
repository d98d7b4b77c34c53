"""Gives out parts of a file as arrays, whose pages are released as soon as nothing uses them."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt


class MappedFile:
    """A file that is mapped into memory once, however many of its parts are in use.

    Mapped pages count as memory of the process until they are released, which happens when an array and everything that
    is a view of it are gone; they are read again where they are needed again.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Maps an open file as it is now; it may be closed afterwards."""
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @staticmethod
    def at(path: Path) -> MappedFile:
        """Maps the file at ``path``.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            return MappedFile(file)

    def array(self, offset: int, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        """Returns ``count`` values from byte ``offset`` on, read-only, (count,)."""
        found = np.frombuffer(self._map, dtype, count, offset)
        if hasattr(self._map, "madvise") and found.nbytes >= mmap.PAGESIZE:
            weakref.finalize(found, _release, self._map, offset, found.nbytes).atexit = False
        return found


def release_pages(array: npt.NDArray[Any]) -> None:
    """Releases the pages of an array of a mapped file that is still in use; does nothing to other arrays."""
    source: Any = array
    while isinstance(source, np.ndarray):
        source = source.base
    mapped = source.obj if isinstance(source, memoryview) else source
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise") and array.nbytes and array.flags.c_contiguous:
        start = np.frombuffer(mapped, np.uint8).ctypes.data
        _release(mapped, array.ctypes.data - start, array.nbytes)


def _release(mapped: mmap.mmap, offset: int, nbytes: int) -> None:
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, start, offset + nbytes - start)
