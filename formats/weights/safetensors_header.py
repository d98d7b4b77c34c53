"""Reads what a ``.safetensors`` file says about its tensors, without the tensors.

Source: https://github.com/huggingface/safetensors#format: eight bytes with the header's length, the header as JSON,
then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.formats.errors import FormatError

PREFIX_BYTES = 8
# The limit of the reference implementation.
LARGEST_HEADER_BYTES = 100_000_000

# Those of numpy; the product of more lengths could take minutes.
_MOST_AXES = 64

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Describes one tensor of the file.

    Attributes:
        dtype: the element type in the format's own words, such as ``BF16``.
        shape: the lengths of its axes.
        nbytes: how many bytes it takes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Describes the file.

    Attributes:
        tensors: what it holds, by name.
        metadata: free text that was stored along.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def announced_header_bytes(head: bytes) -> int | None:
    """Returns the header's length when ``head``, the file's first bytes, looks like the format; None when not."""
    if len(head) <= PREFIX_BYTES or head[PREFIX_BYTES : PREFIX_BYTES + 1] != b"{":
        return None
    length = int.from_bytes(head[:PREFIX_BYTES], "little")
    return length if 2 <= length <= LARGEST_HEADER_BYTES else None


def read_header(path: Path) -> Header:
    """Reads the header and checks it against the size of the file.

    Raises:
        FormatError: the header is damaged, or the file is truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(PREFIX_BYTES + 1)
        length = announced_header_bytes(prefix)
        if length is None:
            raise FormatError(f"{path} is not a .safetensors file", fix="check the path")
        if PREFIX_BYTES + length > size:
            raise _cut_short(path, size)
        text = prefix[PREFIX_BYTES:] + stream.read(length - 1)
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=_each_once)
    except _TwiceError as error:
        raise _damaged(path, f"it describes '{error.args[0]}' twice") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(fields, dict):
        raise _damaged(path, "its header is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata is not text")
    spans = [_span(path, name, entry) for name, entry in fields.items()]
    position = 0
    for start, end, name in sorted((span.start, span.end, span.name) for span in spans):
        if start != position:
            raise _damaged(path, f"tensor '{name}' overlaps another one, or leaves a gap before it")
        position = end
    held = size - PREFIX_BYTES - length
    if held < position:
        raise _cut_short(path, size)
    if held > position:
        raise _damaged(path, f"{held - position} bytes at its end belong to no tensor")
    return Header(tensors={span.name: span.entry for span in spans}, metadata=metadata)


class _TwiceError(Exception):
    """A name stands twice in one JSON object."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _TwiceError(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    name: str
    start: int
    end: int
    entry: TensorEntry


def _span(path: Path, name: str, entry: Any) -> _Span:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"tensor '{name}' is not described completely") from error
    if dtype not in DTYPE_BITS:
        raise FormatError(
            f"tensor '{name}' in {path} has the element type {dtype}, which is not known",
            fix="store it as one of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL",
        )
    if len(shape) > _MOST_AXES:
        raise _damaged(path, f"tensor '{name}' has {len(shape)} axes")
    if not whole or (end - start) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise _damaged(path, f"tensor '{name}' has another number of bytes than its shape")
    return _Span(name=name, start=start, end=end, entry=TensorEntry(dtype=dtype, shape=shape, nbytes=end - start))


def _damaged(path: Path, reason: str) -> FormatError:
    return FormatError(f"{path} is a damaged .safetensors file: {reason}", fix="download or save it again")


def _cut_short(path: Path, size: int) -> FormatError:
    return FormatError(
        f"{path} is a .safetensors file that was truncated after {size:,} bytes", fix="download or save it again"
    )
