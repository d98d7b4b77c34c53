"""Reads ``.gguf`` files: what they say about themselves, and their tensors.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from qtool.formats.errors import FormatError
from qtool.formats.other_files import GGUF_HEAD

_VERSIONS = (2, 3)
# More than the largest models have; each entry takes a dozen bytes at least.
_MOST_ENTRIES = 1 << 20
_MOST_AXES = 4
_LONGEST_TEXT_BYTES = 1 << 24
_DEEPEST_ARRAY = 4
_STRING, _ARRAY = 8, 9
_NUMBERS: Mapping[int, str] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
# Elements and bytes of a block, by the number of the type.
_F32, _F16, _Q8_0, _BF16 = 0, 1, 8, 30
_BLOCKS: Mapping[int, tuple[int, int]] = {_F32: (1, 4), _F16: (1, 2), _BF16: (1, 2), _Q8_0: (32, 34)}


@dataclass(frozen=True, slots=True)
class GgufContents:
    """Holds what a file holds.

    Attributes:
        fields: what it says about itself, by key; arrays are lists.
        tensors: by name, in the order of torch: the fastest axis is the last. Blocks of eight bits are float32.
    """

    fields: Mapping[str, object]
    tensors: Mapping[str, torch.Tensor]


def read_gguf(path: Path) -> GgufContents:
    """Reads all of it; nothing in such a file can be run.

    Raises:
        FormatError: it is damaged, of another version or byte order, or holds tensors of types other than F32, F16,
            BF16 and Q8_0.
    """
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    reader = _Reader(data, path)
    try:
        return _contents(reader)
    except (struct.error, UnicodeDecodeError) as error:
        raise reader.damaged("it ends too early, or holds text that is none") from error


class _Reader:
    """Reads numbers and texts one after the other."""

    def __init__(self, data: npt.NDArray[np.uint8], path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def number(self, form: str) -> int | float | bool:
        length = struct.calcsize(form)
        (value,) = struct.unpack(form, self.data[self.position : self.position + length].tobytes())
        self.position += length
        found: int | float | bool = value
        return found

    def count(self, form: str, limit: int, what: str) -> int:
        found = int(self.number(form))
        if found > limit:
            raise self.damaged(f"it announces {found} {what}")
        return found

    def text(self) -> str:
        length = self.count("<Q", min(_LONGEST_TEXT_BYTES, len(self.data) - self.position), "bytes of text")
        self.position += length
        return self.data[self.position - length : self.position].tobytes().decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> object:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth == _DEEPEST_ARRAY:
            raise self.damaged(f"it holds a value of the unknown type {kind}")
        item = int(self.number("<I"))
        length = self.count("<Q", len(self.data) - self.position, "values")
        return [self.value(item, depth + 1) for _ in range(length)]

    def damaged(self, how: str) -> FormatError:
        return FormatError(f"{self.path} is a damaged GGUF file: {how}", fix="download or convert it again")


def _contents(reader: _Reader) -> GgufContents:
    if reader.data[: len(GGUF_HEAD)].tobytes() != GGUF_HEAD:
        raise FormatError(f"{reader.path} is no GGUF file", fix="name a .gguf file")
    reader.position = len(GGUF_HEAD)
    version = int(reader.number("<I"))
    if version not in _VERSIONS:
        raise FormatError(
            f"{reader.path} is GGUF of version {version}, or of a machine with another byte order",
            fix="convert it again with a llama.cpp of today",
        )
    tensor_count = reader.count("<Q", _MOST_ENTRIES, "tensors")
    field_count = reader.count("<Q", _MOST_ENTRIES, "fields")
    fields: dict[str, object] = {}
    for _ in range(field_count):
        key = reader.text()
        fields[key] = reader.value(int(reader.number("<I")))
    entries = [_entry(reader) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise reader.damaged(f"its alignment is {alignment}")
    start = -(-reader.position // alignment) * alignment
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise reader.damaged("two of its tensors have one name")
    return GgufContents(fields, {entry.name: _tensor(reader, entry, start) for entry in entries})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _entry(reader: _Reader) -> _Entry:
    name = reader.text()
    axes = reader.count("<I", _MOST_AXES, f"axes of '{name}'")
    shape = tuple(int(reader.number("<Q")) for _ in range(axes))[::-1]
    return _Entry(name=name, shape=shape, kind=int(reader.number("<I")), offset=int(reader.number("<Q")))


def _tensor(reader: _Reader, entry: _Entry, start: int) -> torch.Tensor:
    if entry.kind not in _BLOCKS:
        raise FormatError(
            f"'{entry.name}' in {reader.path} has the GGUF type {entry.kind}; F32, F16, BF16 and Q8_0 are read",
            fix="convert it with --outtype f16",
        )
    elements, nbytes = _BLOCKS[entry.kind]
    count = math.prod(entry.shape)
    begin, length = start + entry.offset, count // elements * nbytes
    if count % elements or begin + length > len(reader.data):
        raise reader.damaged(f"'{entry.name}' does not fit in it")
    raw = reader.data[begin : begin + length].copy()
    return _READERS[entry.kind](raw).reshape(entry.shape)


def _plain(dtype: torch.dtype) -> Callable[[npt.NDArray[np.uint8]], torch.Tensor]:
    return lambda raw: torch.from_numpy(raw).view(dtype) if raw.size else torch.empty(0, dtype=dtype)


def _eight_bits(raw: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Returns scale · q: each block is a scale in float16 and 32 integers."""
    blocks = raw.reshape(-1, 34)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return torch.from_numpy((blocks[:, 2:].view(np.int8) * scale).reshape(-1))


_READERS: Mapping[int, Callable[[npt.NDArray[np.uint8]], torch.Tensor]] = {
    _F32: _plain(torch.float32),
    _F16: _plain(torch.float16),
    _BF16: _plain(torch.bfloat16),
    _Q8_0: _eight_bits,
}
