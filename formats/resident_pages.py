"""Releases pages of mapped files after they have been copied."""

from __future__ import annotations

import ctypes
import io
import mmap
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

_KEPT_BYTES = 256 << 20
# Linux, asm-generic/mman-common.h: dropped pages are read from the file again when they are accessed.
_MADV_DONTNEED = 4
# A line of /proc/self/maps: addresses, permissions, offset, device, inode (0 without a file).
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ ([1-9]\d*)")


class DroppingWriter(io.BufferedWriter):
    """Writes a file, and releases the pages of written tensors that are mapped from another file.

    On Linux only: elsewhere the system decides when pages of mapped files are released.
    """

    def __init__(self, file: io.RawIOBase, tensors: Iterable[torch.Tensor]) -> None:
        """Takes the file, and the tensors in the order in which they will be written."""
        super().__init__(file)
        self._waiting: list[tuple[int, int, int]] = []
        self._written = self._dropped = 0
        if sys.platform == "linux":
            files, end = _mappings_of_files(), 0
            for tensor in tensors:
                storage = tensor.untyped_storage()
                begin, nbytes = storage.data_ptr(), storage.nbytes()
                end += nbytes
                # Memory that is not mapped from a file would be lost.
                if any(first <= begin and begin + nbytes <= last for first, last in files):
                    self._waiting.append((end, begin, nbytes))

    def write(self, content: Buffer) -> int:
        """Writes, and regularly releases written pages."""
        count = super().write(content)
        self._written += count
        if self._written - self._dropped > _KEPT_BYTES:
            while self._waiting and self._waiting[0][0] <= self._written:
                _, begin, nbytes = self._waiting.pop(0)
                _drop(begin, nbytes)
            self._dropped = self._written
        return count


def _mappings_of_files() -> list[tuple[int, int]]:
    try:
        text = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [(int(found[1], 16), int(found[2], 16)) for found in map(_MAPPING.match, text.splitlines()) if found]


def _drop(begin: int, nbytes: int) -> None:
    # Whole pages only: others may hold bytes of an adjacent tensor.
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (begin + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_DONTNEED)
