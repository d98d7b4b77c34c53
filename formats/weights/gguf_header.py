"""Reads what ``.gguf`` files say about themselves, and where their tensors are; nothing in them can be run.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qtool.formats.errors import FormatError

GGUF_HEAD = b"GGUF"
_VERSIONS = (2, 3)
# More than the largest models have; each entry takes a dozen bytes at least.
_MOST_ENTRIES = 1 << 20
_MOST_AXES = 4
_LONGEST_TEXT_BYTES = 1 << 24
_DEEPEST_ARRAY = 4
_STRING, _ARRAY = 8, 9
_NUMBERS: Mapping[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor is stored.

    Attributes:
        name: what ggml calls it.
        elements: how many elements a block has.
        nbytes: how many bytes it takes.
    """

    name: str
    elements: int
    nbytes: int


F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
# Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
BLOCK_TYPES: Mapping[int, BlockType] = {
    F32: BlockType("F32", 1, 4),
    F16: BlockType("F16", 1, 2),
    Q4_0: BlockType("Q4_0", 32, 18),
    Q4_1: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    Q8_0: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    29: BlockType("IQ1_M", 256, 56),
    BF16: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufEntry:
    """Where one tensor is.

    Attributes:
        name: its name.
        shape: in the order of torch: the fastest axis is the last.
        kind: the number of its type.
        begin: its first byte in the file.
        nbytes: how many bytes it has; None for types that are not known.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int
    nbytes: int | None

    @property
    def type_name(self) -> str:
        """What ggml calls the type."""
        known = BLOCK_TYPES.get(self.kind)
        return f"type {self.kind}" if known is None else known.name


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says.

    Attributes:
        version: of the format.
        fields: what it says about itself, by key; arrays are lists.
        entries: its tensors.
    """

    version: int
    fields: Mapping[str, object]
    entries: tuple[GgufEntry, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads all but the tensors, whose places are checked.

    Raises:
        FormatError: the file is damaged, or of another version or byte order.
    """
    size = path.stat().st_size
    if size == 0:
        raise _not_gguf(path)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data, size, path)
        try:
            return _header(reader)
        except (struct.error, UnicodeDecodeError) as error:
            raise reader.damaged("it ends too early, or holds text that is none") from error


def _not_gguf(path: Path) -> FormatError:
    return FormatError(f"{path} is no GGUF file", fix="name a .gguf file")


class _Reader:
    """Reads numbers and texts one after the other."""

    def __init__(self, data: mmap.mmap, size: int, path: Path) -> None:
        self.data, self.size, self.path = data, size, path
        self.position = 0

    def number(self, form: str) -> int | float | bool:
        found: int | float | bool
        (found,) = struct.unpack_from(f"<{form}", self.data, self.position)
        self.position += struct.calcsize(f"<{form}")
        return found

    def count(self, form: str, limit: int, what: str) -> int:
        found = int(self.number(form))
        if found > limit:
            raise self.damaged(f"it announces {found} {what}")
        return found

    def text(self) -> str:
        length = self.count("Q", min(_LONGEST_TEXT_BYTES, self.size - self.position), "bytes of text")
        self.position += length
        return self.data[self.position - length : self.position].decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> object:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth == _DEEPEST_ARRAY:
            raise self.damaged(f"it holds a value of the unknown type {kind}")
        item = int(self.number("I"))
        length = self.count("Q", self.size - self.position, "values")
        if item not in _NUMBERS:
            return [self.value(item, depth + 1) for _ in range(length)]
        form = f"<{length}{_NUMBERS[item]}"
        found = list(struct.unpack_from(form, self.data, self.position))
        self.position += struct.calcsize(form)
        return found

    def damaged(self, how: str) -> FormatError:
        return FormatError(f"{self.path} is a damaged GGUF file: {how}", fix="download or convert it again")


def _header(reader: _Reader) -> GgufHeader:
    if reader.data[: len(GGUF_HEAD)] != GGUF_HEAD:
        raise _not_gguf(reader.path)
    reader.position = len(GGUF_HEAD)
    version = int(reader.number("I"))
    if version not in _VERSIONS:
        raise FormatError(
            f"{reader.path} is GGUF of version {version}, or of a machine with another byte order",
            fix="convert it again with a llama.cpp of today",
        )
    tensor_count = reader.count("Q", _MOST_ENTRIES, "tensors")
    field_count = reader.count("Q", _MOST_ENTRIES, "fields")
    fields: dict[str, object] = {}
    for _ in range(field_count):
        key = reader.text()
        fields[key] = reader.value(int(reader.number("I")))
    found = [_entry(reader) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise reader.damaged(f"its alignment is {alignment}")
    start = -(-reader.position // alignment) * alignment
    names = [entry.name for entry in found]
    if len(set(names)) < len(names):
        raise reader.damaged("two of its tensors have one name")
    return GgufHeader(version, fields, tuple(_placed(reader, entry, start) for entry in found))


def _entry(reader: _Reader) -> GgufEntry:
    name = reader.text()
    axes = reader.count("I", _MOST_AXES, f"axes of '{name}'")
    shape = tuple(int(reader.number("Q")) for _ in range(axes))[::-1]
    return GgufEntry(name=name, shape=shape, kind=int(reader.number("I")), begin=int(reader.number("Q")), nbytes=None)


def _placed(reader: _Reader, entry: GgufEntry, start: int) -> GgufEntry:
    """Returns the entry with its place in the file, which holds all of it."""
    begin, block = start + entry.begin, BLOCK_TYPES.get(entry.kind)
    count = math.prod(entry.shape)
    # Blocks lie within rows.
    last = entry.shape[-1] if entry.shape else 1
    nbytes = None if block is None else count // block.elements * block.nbytes
    if begin > reader.size or (block is not None and last % block.elements) or begin + (nbytes or 0) > reader.size:
        raise reader.damaged(f"'{entry.name}' does not fit in it")
    return GgufEntry(name=entry.name, shape=entry.shape, kind=entry.kind, begin=begin, nbytes=nbytes)
