"""Keeps large arrays in temporary files without names, so that what a run has made does not fill the memory."""

from __future__ import annotations

import os
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from qtool.formats.mapped_file import MappedFile

# Smaller arrays stay in memory.
_SMALLEST_KEPT_BYTES = 1 << 20
# Files of this length, most of it a hole at first, are mapped as a whole: a mapping of each array would hold a
# descriptor, of which processes have about a thousand.
_SEGMENT_BYTES = 256 << 20
_ALIGNMENT_BYTES = 64
_PIECE_BYTES = 4 << 20
# Where systems keep large temporary files: /tmp may be in memory.
_FOLDER = Path("/var/tmp")


class Scratch:
    """Temporary files, which go with the last array in them, or with the process."""

    def __init__(self, folder: Path, *, segment_bytes: int = _SEGMENT_BYTES) -> None:
        """Takes an existing folder."""
        self._folder, self._segment_bytes = folder, segment_bytes
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._mapped: MappedFile | None = None
        self._end = self._place = 0

    def keep(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the same values, read-only and C-contiguous, in pages that the system can drop.

        Raises:
            OSError: the disk is full.
        """
        flat = np.ascontiguousarray(array).reshape(-1)
        with self._lock:
            if self._file is None or self._mapped is None or self._place + flat.nbytes > self._end:
                self._begin(flat.nbytes)
            place, self._place = self._place, -(-(self._place + flat.nbytes) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            file, mapped = self._file, self._mapped
            if file is None or mapped is None:
                raise AssertionError("a segment has just been begun")
            file.seek(place)
            step = max(_PIECE_BYTES // flat.itemsize, 1)
            for start in range(0, flat.size, step):
                file.write(flat[start : start + step].view(np.uint8).data)
            file.flush()
        return mapped.array(place, flat.dtype, flat.size).reshape(array.shape)

    def _begin(self, nbytes: int) -> None:
        if self._file is not None:
            self._file.close()
        self._end, self._place = max(nbytes, self._segment_bytes), 0
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - the next segment closes it
        self._file.truncate(self._end)
        self._mapped = MappedFile(self._file)


def kept_aside(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns ``array``, or where it is large the same values in a temporary file.

    That is in the folder that ``TMPDIR`` names, or else in /var/tmp where there is one.

    Raises:
        OSError: the disk is full.
    """
    return array if array.nbytes < _SMALLEST_KEPT_BYTES else _scratch().keep(array)


@cache
def _scratch() -> Scratch:
    is_usable = "TMPDIR" not in os.environ and _FOLDER.is_dir() and os.access(_FOLDER, os.W_OK)
    return Scratch(_FOLDER if is_usable else Path(tempfile.gettempdir()))
