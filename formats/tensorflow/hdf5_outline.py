"""Lists the arrays of an HDF5 file, without their values, and its texts; without libhdf5.

Reads what h5py writes by default: superblock 0, groups with symbol tables, object headers of version 1. Source:
https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import IO

HDF5_HEAD = b"\x89HDF\r\n\x1a\n"
# Offsets in the superblock: its version, the size of addresses and lengths, and the object header of the root group.
_SUPERBLOCK_BYTES, _SIZES_PLACE, _ROOT_PLACE = 96, 13, 64
_DATASPACE, _DATATYPE, _CONTINUATION, _SYMBOL_TABLE = 0x01, 0x03, 0x10, 0x11
_LINK_INFO, _LINK, _EXTERNAL_FILES, _LAYOUT, _ATTRIBUTE, _MANY_ATTRIBUTES = 0x02, 0x06, 0x07, 0x08, 0x0C, 0x15
_INTEGER, _FLOAT, _TEXT, _VARIABLE_LENGTH = 0, 1, 3, 9
_VIRTUAL_LAYOUT, _HARD_LINK, _EXTERNAL_LINK = 3, 0, 64
_NOWHERE = (1 << 64) - 1
_LARGEST_TEXT_BYTES = 64 << 20
_LARGEST_BLOCK_BYTES = 1 << 20
_MOST_BLOCKS = 100_000
_DEEPEST = 32


class Hdf5Error(ValueError):
    """The file is damaged, or of an unsupported kind."""


class Hdf5OutsideError(Hdf5Error):
    """The file takes values from other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5Array:
    """Describes an array.

    Attributes:
        path: the names of the groups that it is in, and its own.
        dtype: its element type, such as ``float32``.
        shape: the lengths of its axes.
        item_bytes: the bytes of one value.
    """

    path: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    item_bytes: int


def read_arrays(stream: IO[bytes], begin: int = 0) -> list[Hdf5Array]:
    """Returns the arrays of numbers in the file that begins at ``begin`` in ``stream``, in the order of its groups.

    Raises:
        Hdf5Error: the file is damaged, or of a kind that is not read here.
        Hdf5OutsideError: an array in it has its values in another file.
    """
    reader = _Reader(stream, begin)
    try:
        return list(reader.arrays(reader.root(), ()))
    except _DAMAGE as error:
        raise Hdf5Error("damaged") from error


def read_texts(stream: IO[bytes], names: Container[str]) -> dict[str, str]:
    """Returns the attributes of the file's root whose names are in ``names`` and which are texts.

    Raises:
        Hdf5Error: the file is damaged, or keeps one of them in a form that is not read here.
    """
    reader = _Reader(stream, 0)
    try:
        return dict(reader.texts(reader.root(), names))
    except _DAMAGE as error:
        raise Hdf5Error("damaged") from error


_DAMAGE = (struct.error, IndexError, OSError, OverflowError)


class _Reader:
    def __init__(self, stream: IO[bytes], begin: int) -> None:
        self._stream, self._begin = stream, begin
        self._blocks = 0

    def root(self) -> int:
        """Returns where the object header of the root group is."""
        head = self.block(0, _SUPERBLOCK_BYTES)
        if not head.startswith(HDF5_HEAD) or head[8] != 0 or head[_SIZES_PLACE : _SIZES_PLACE + 2] != b"\x08\x08":
            raise Hdf5Error("another kind of HDF5")
        (place,) = struct.unpack_from("<Q", head, _ROOT_PLACE)
        return int(place)

    def block(self, place: int, count: int, *, limit: int = _LARGEST_BLOCK_BYTES) -> bytes:
        # The limit ends cycles of parts that point at each other.
        self._blocks += 1
        if self._blocks > _MOST_BLOCKS or not 0 <= count <= limit or place >= 1 << 62:
            raise Hdf5Error("damaged")
        self._stream.seek(self._begin + place)
        content = self._stream.read(count)
        if len(content) < count:
            raise Hdf5Error("truncated")
        return content

    def arrays(self, header: int, path: tuple[str, ...]) -> Iterator[Hdf5Array]:
        """Yields the array whose object header is at ``header``, or those of the group that is there."""
        if len(path) > _DEEPEST:
            raise Hdf5Error("damaged")
        shape: tuple[int, ...] | None = None
        kind: tuple[str, int] | None = None
        for message, content in self._messages(header):
            if message == _SYMBOL_TABLE:
                tree, heap = struct.unpack_from("<QQ", content)
                (names,) = struct.unpack_from("<Q", self._signed(heap, b"HEAP", 32), 24)
                for name_place, child in self._children(tree, 0):
                    yield from self.arrays(child, (*path, self._name(names + name_place)))
            elif message == _DATASPACE:
                shape = _shape(content)
            elif message == _DATATYPE:
                kind = _kind(content)
            elif _leads_outside(message, content):
                raise Hdf5OutsideError(f"'{'/'.join(path)}' takes values from another file")
            elif message == _LINK:
                name, child = _link(content)
                yield from self.arrays(child, (*path, name))
            elif message == _LINK_INFO and _many_links(content):
                raise Hdf5Error("links in a form that is not read here")
        if shape is not None and kind is not None:
            yield Hdf5Array(path=path, dtype=kind[0], shape=shape, item_bytes=kind[1])

    def texts(self, header: int, names: Container[str]) -> Iterator[tuple[str, str]]:
        """Yields the attributes at ``header`` whose names are among ``names`` and which are texts."""
        for message, content in self._messages(header):
            if message == _MANY_ATTRIBUTES:
                raise Hdf5Error("attributes in a form that is not read here")
            if message == _ATTRIBUTE:
                name, datatype, value = _attribute(content)
                if name in names:
                    yield name, self._text(datatype, value).rstrip(b"\0").decode("utf-8", "replace")

    def _text(self, datatype: bytes, value: bytes) -> bytes:
        kind = datatype[0] & 15
        if kind == _TEXT:
            return value
        if kind != _VARIABLE_LENGTH or datatype[1] & 15 != 1:
            raise Hdf5Error("a text of another type")
        length, heap, number = struct.unpack_from("<IQI", value)
        (size,) = struct.unpack_from("<Q", self._signed(heap, b"GCOL", 16), 8)
        place, end = heap + 16, heap + size
        while place + 16 <= end:
            found, _, nbytes = struct.unpack("<HH4xQ", self.block(place, 16))
            if found == number:
                return self.block(place + 16, min(length, nbytes), limit=_LARGEST_TEXT_BYTES)
            place += 16 + _padded(nbytes)
        raise Hdf5Error("damaged")

    def _messages(self, header: int) -> Iterator[tuple[int, bytes]]:
        version, _, count, _, size = struct.unpack("<BBHII", self.block(header, 12))
        if version != 1:
            raise Hdf5Error("another kind of HDF5")
        waiting = [(header + 16, size)]
        while waiting and count > 0:
            place, size = waiting.pop(0)
            content = self.block(place, size)
            at = 0
            while at + 8 <= size and count > 0:
                message, length = struct.unpack_from("<HH", content, at)
                body = content[at + 8 : at + 8 + length]
                if message == _CONTINUATION:
                    waiting.append(struct.unpack_from("<QQ", body))
                yield message, body
                at, count = at + 8 + length, count - 1

    def _children(self, tree: int, depth: int) -> Iterator[tuple[int, int]]:
        head = self._signed(tree, b"TREE", 24)
        level, used = struct.unpack_from("<BH", head, 5)
        if depth > _DEEPEST:
            raise Hdf5Error("damaged")
        entries = self.block(tree + 24, 16 * used + 8)
        for entry in range(used):
            (child,) = struct.unpack_from("<Q", entries, 16 * entry + 8)
            yield from self._children(child, depth + 1) if level else self._symbols(child)

    def _symbols(self, node: int) -> Iterator[tuple[int, int]]:
        (count,) = struct.unpack_from("<H", self._signed(node, b"SNOD", 8), 6)
        entries = self.block(node + 8, 40 * count)
        for entry in range(count):
            name, header = struct.unpack_from("<QQ", entries, 40 * entry)
            yield name, header

    def _signed(self, place: int, signature: bytes, count: int) -> bytes:
        content = self.block(place, count)
        if not content.startswith(signature):
            raise Hdf5Error("damaged")
        return content

    def _name(self, place: int) -> str:
        self._stream.seek(self._begin + place)
        return self._stream.read(256).partition(b"\0")[0].decode("utf-8", "replace")


def _attribute(content: bytes) -> tuple[str, bytes, bytes]:
    """Returns the name of an attribute, its type and its value."""
    version, flags, name_bytes, type_bytes, space_bytes = struct.unpack_from("<BBHHH", content)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise Hdf5Error("attributes in a form that is not read here")
    if version == 1:
        at, steps = 8, [_padded(one) for one in (name_bytes, type_bytes, space_bytes)]
    else:
        at, steps = 9 if version == 3 else 8, [name_bytes, type_bytes, space_bytes]
    name = content[at : at + name_bytes].partition(b"\0")[0].decode("utf-8", "replace")
    at += steps[0]
    return name, content[at : at + type_bytes], content[at + steps[1] + steps[2] :]


def _padded(count: int) -> int:
    return count + -count % 8


def _leads_outside(message: int, content: bytes) -> bool:
    """Returns whether a message of an object refers to another file."""
    if message == _LINK:
        return bool(content[1] & 8) and content[2] >= _EXTERNAL_LINK
    return message == _EXTERNAL_FILES or (message == _LAYOUT and content[0] >= 4 and content[1] == _VIRTUAL_LAYOUT)


def _link(content: bytes) -> tuple[str, int]:
    """Returns the name of a link inside the file, and the object header of its target."""
    flags, at = content[1], 2
    if flags & 8 and content[at] != _HARD_LINK:
        raise Hdf5Error("links in a form that is not read here")
    # Its kind, when it was made, and the characters of its name, where each is said.
    at += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
    width = 1 << (flags & 3)
    length = int.from_bytes(content[at : at + width], "little")
    at += width
    (child,) = struct.unpack_from("<Q", content, at + length)
    return content[at : at + length].decode("utf-8", "replace"), child


def _many_links(content: bytes) -> bool:
    """Returns whether a group keeps its links in a heap of their own."""
    (heap,) = struct.unpack_from("<Q", content, 10 if content[1] & 1 else 2)
    return bool(heap != _NOWHERE)


def _shape(content: bytes) -> tuple[int, ...]:
    version, rank = content[0], content[1]
    return struct.unpack_from(f"<{rank}Q", content, 8 if version == 1 else 4)


def _kind(content: bytes) -> tuple[str, int] | None:
    """Returns the name and the bytes of a type of numbers; None for texts and what is made of several."""
    (size,) = struct.unpack_from("<I", content, 4)
    if content[0] & 15 == _FLOAT:
        return f"float{8 * size}", size
    if content[0] & 15 == _INTEGER:
        return f"{'int' if content[1] & 8 else 'uint'}{8 * size}", size
    return None
