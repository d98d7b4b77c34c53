"""Small HDF5 files, written byte by byte as h5py lays them out."""

from __future__ import annotations

import struct
from pathlib import Path

HDF5_HEAD = b"\x89HDF\r\n\x1a\n"


def hdf5(rows: int = 3, columns: int = 5) -> bytes:
    """Writes a root group with one float32 array, ``kernel``, as h5py lays such files out."""
    superblock = HDF5_HEAD + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + bytes(8) + struct.pack("<4Q", 0, 0, 0, 0)
    superblock += struct.pack("<QQ", 0, 96) + bytes(24)
    group = struct.pack("<BBHII4x", 1, 0, 1, 1, 24) + struct.pack("<HH4xQQ", 0x11, 16, 136, 232)
    tree = b"TREE" + struct.pack("<BBHQQ", 0, 0, 1, 0, 0) + struct.pack("<QQQ", 0, 184, 0)
    symbols = b"SNOD" + struct.pack("<BBH", 1, 0, 1) + struct.pack("<QQ", 8, 280) + bytes(24)
    heap = b"HEAP" + bytes(4) + struct.pack("<QQQ", 16, 0, 264) + bytes(8) + b"kernel\0\0"
    array = struct.pack("<BBHII4x", 1, 0, 2, 1, 48)
    array += struct.pack("<HH4x", 1, 24) + bytes([1, 2, 0, 0, 0, 0, 0, 0]) + struct.pack("<QQ", rows, columns)
    array += struct.pack("<HH4x", 3, 8) + bytes([0x11, 0x20, 0x3F, 0]) + struct.pack("<I", 4)
    return superblock + group + tree + symbols + heap + array


def attribute(name: str, heap: int, number: int, length: int) -> bytes:
    """Lays out a text of variable length as h5py does: the text itself is in the file's heap."""
    title = name.encode() + b"\0"
    kind = bytes([0x19, 1, 1, 0]) + struct.pack("<I", 16) + bytes([0x10, 0, 0, 0]) + struct.pack("<IHHI", 1, 0, 8, 0)
    space = bytes([1, 0, 0, 0, 0, 0, 0, 0])
    value = struct.pack("<IQI", length, heap, number)
    body = struct.pack("<BBHHH", 1, 0, len(title), len(kind), len(space))
    body += title + bytes(-len(title) % 8) + kind + bytes(-len(kind) % 8) + space + value
    body += bytes(-len(body) % 8)
    return struct.pack("<HH4x", 0x0C, len(body)) + body


def write_h5(path: Path, texts: dict[str, str], *, messages: bytes = b"", count: int = 0) -> Path:
    """Writes a file whose root has these texts as attributes, and ``messages`` before them."""
    contents = [text.encode() for text in texts.values()]
    attributes = b"".join(
        attribute(name, 0, number, len(content))
        for number, (name, content) in enumerate(zip(texts, contents, strict=True), start=1)
    )
    heap = 96 + 16 + len(messages) + len(attributes)
    attributes = b"".join(
        attribute(name, heap, number, len(content))
        for number, (name, content) in enumerate(zip(texts, contents, strict=True), start=1)
    )
    superblock = HDF5_HEAD + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + bytes(8) + struct.pack("<4Q", 0, 0, 0, 0)
    superblock += struct.pack("<QQ", 0, 96) + bytes(24)
    root = struct.pack("<BBHII4x", 1, 0, len(texts) + count, 1, len(messages) + len(attributes))
    held = b"".join(
        struct.pack("<HH4xQ", number, 1, len(content)) + content + bytes(-len(content) % 8)
        for number, content in enumerate(contents, start=1)
    )
    collection = b"GCOL" + bytes([1, 0, 0, 0]) + struct.pack("<Q", 16 + len(held)) + held
    path.write_bytes(superblock + root + messages + attributes + collection)
    return path
