"""Reads arrays from ``.npy`` files and ``.npz`` members a few rows at a time.

Sources: the NPY format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; an ``.npz`` is a zip of
``.npy`` members, whose streams can be read forward without holding a member whole, compressed or not.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from qtool.calib.errors import CalibError
from qtool.calib.specs import Array

# The size of one read of skipped data, which bounds the memory.
_SKIP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """One array in a file, without its values.

    Attributes:
        name: its name in the ``.npz``, empty for a ``.npy``.
        path: the file.
        dtype: the type of its elements.
        shape: its shape; the first axis holds the samples.
        fortran: whether the first axis runs fastest in the file.
        open: opens the ``.npy`` stream from its start.
    """

    name: str
    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    open: Callable[[], IO[bytes]]

    @property
    def label(self) -> str:
        """Its name in errors."""
        return f"array '{self.name}' in {self.path}" if self.name else str(self.path)

    def load(self) -> Array:
        """Reads the whole array.

        Raises:
            CalibError: the file is damaged.
        """
        with reading(self.path), self.open() as stream:
            _read_header(stream, self.label)
            flat = _read_values(stream, self.dtype, math.prod(self.shape), self.label)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")

    def chunks(self, rows: int, *, start: int, stop: int) -> Generator[Array, None, None]:
        """Yields rows ``start`` to ``stop``, ``rows`` at a time; holds no more of the array than that.

        Raises:
            CalibError: the file is damaged.
        """
        if self.fortran and len(self.shape) > 1:
            yield from self._strided_chunks(rows, start=start, stop=stop)
            return
        row_values = math.prod(self.shape[1:])
        with reading(self.path), self.open() as stream:
            _read_header(stream, self.label)
            _skip(stream, start * row_values * self.dtype.itemsize)
            for first in range(start, stop, rows):
                count = min(rows, stop - first)
                flat = _read_values(stream, self.dtype, count * row_values, self.label)
                yield flat.reshape(count, *self.shape[1:])

    def _strided_chunks(self, rows: int, *, start: int, stop: int) -> Generator[Array, None, None]:
        """Yields rows of a column-major file through a memory map of the uncompressed values."""
        with reading(self.path), tempfile.TemporaryFile() as plain:
            with self.open() as stream:
                _read_header(stream, self.label)
                shutil.copyfileobj(stream, plain, _SKIP_BYTES)
            if plain.tell() < math.prod(self.shape) * self.dtype.itemsize:
                raise _truncated(self.label)
            values = np.memmap(plain, self.dtype, "r", shape=self.shape, order="F")
            for first in range(start, stop, rows):
                yield np.array(values[first : min(first + rows, stop)], order="C")
            del values  # the map must be gone before the file closes, or Windows keeps it


def open_npy(path: Path) -> StoredArray:
    """Reads the header of a ``.npy`` file.

    Raises:
        CalibError: it is not one, is damaged, or holds Python objects.
    """
    with reading(path):
        return _stored("", path, lambda: path.open("rb"), path.stat().st_size)


def open_arrays(path: Path) -> dict[str, StoredArray]:
    """Reads the headers of the arrays in an ``.npz`` file, by name, or of that in a ``.npy`` file, without one.

    Raises:
        CalibError: it is neither, is damaged, or an array holds Python objects.
    """
    return {"": open_npy(path)} if path.suffix.lower() == ".npy" else _open_npz(path)


def _open_npz(path: Path) -> dict[str, StoredArray]:
    with reading(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        arrays = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            arrays[name] = _stored(name, path, _member_opener(path, member.filename), member.file_size)
    if len(arrays) < len(members):
        raise CalibError(f"{path} holds an array twice", fix="save it again with numpy.savez")
    return arrays


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translates what damaged files raise into errors that name the file."""
    try:
        yield
    except zipfile.BadZipFile as error:
        reason = "is empty" if path.stat().st_size == 0 else f"is not a whole .npz file: {error}"
        raise CalibError(f"{path} {reason}", fix="save it again with numpy.savez, or copy it again") from error
    except (zlib.error, EOFError, NotImplementedError, RuntimeError) as error:  # raised by zipfile
        raise CalibError(
            f"{path} cannot be read: {error}", fix="save it again with numpy.savez, or copy it again"
        ) from error
    except PermissionError as error:
        raise CalibError(f"{path} may not be read", fix="change its permissions") from error
    except OSError as error:
        raise CalibError(f"{path} cannot be read: {error.strerror or error}", fix="check the path") from error


class _Member:
    """Opens one member of a zip; a plain class, so that it is named in tracebacks and can be pickled."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    def __call__(self) -> IO[bytes]:
        archive = zipfile.ZipFile(self._path)
        try:
            return archive.open(self._name)
        finally:
            archive.close()  # the file itself stays open until the member is closed


def _member_opener(path: Path, name: str) -> Callable[[], IO[bytes]]:
    return _Member(path, name)


def _stored(name: str, path: Path, opener: Callable[[], IO[bytes]], size: int) -> StoredArray:
    label = f"array '{name}' in {path}" if name else str(path)
    with opener() as stream:
        shape, fortran, dtype = _read_header(stream, label)
        header = stream.tell()
    if dtype.hasobject:
        raise CalibError(
            f"{label} holds Python objects, which are never loaded",
            fix="store plain numbers: numpy.stack(list(x)).astype('float32')",
        )
    if dtype.names is not None or dtype.kind == "V":
        raise CalibError(f"{label} has the element type {dtype}", fix="store one plain array for each field")
    if size < header + math.prod(shape) * dtype.itemsize:
        raise _truncated(label)
    return StoredArray(name=name, path=path, dtype=dtype, shape=shape, fortran=fortran, open=opener)


def _read_header(stream: IO[bytes], label: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError as error:
        reason = "is not a .npy array, or is damaged" if stream.tell() else "is empty"
        raise CalibError(f"{label} {reason}", fix="save it with numpy.save or numpy.savez") from error
    return shape, fortran, dtype


def _read_values(stream: IO[bytes], dtype: np.dtype[Any], count: int, label: str) -> Array:
    values = np.empty(count, dtype)
    if values.nbytes == 0:
        return values
    view = values.view(np.uint8).data
    filled = 0
    while filled < len(view):
        part = stream.read(len(view) - filled)
        if not part:
            raise _truncated(label)
        view[filled : filled + len(part)] = part
        filled += len(part)
    return values


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        part = stream.read(min(count, _SKIP_BYTES))
        if not part:
            return  # the next read reports that the file is truncated
        count -= len(part)


def _truncated(label: str) -> CalibError:
    return CalibError(f"{label} ends before its last value", fix="save it again, or copy it again")
