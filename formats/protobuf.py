"""Iterates over the fields of protobuf messages in a file without reading their contents.

Source: https://protobuf.dev/programming-guides/encoding/ (tags, varints, length-delimited fields).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

VARINT = 0
_FIXED64 = 1
BYTES = 2
_FIXED32 = 5
_LONGEST_VARINT_BYTES = 10


class WireError(ValueError):
    """The bytes are not a protobuf message.

    Attributes:
        cut_short: whether they are the beginning of one.
    """

    def __init__(self, problem: str, *, cut_short: bool) -> None:
        """Records whether the file is truncated or of another kind."""
        super().__init__(problem)
        self.cut_short = cut_short


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a message.

    Attributes:
        number: the field's number in the ``.proto`` definition.
        wire_type: how it is encoded: ``VARINT``, ``BYTES`` or a fixed width.
        value: the number itself of a ``VARINT``, otherwise 0.
        start: where its content begins in the file.
        end: where its content ends.
    """

    number: int
    wire_type: int
    value: int
    start: int
    end: int


def fields(stream: IO[bytes], start: int, end: int) -> Iterator[Field]:
    """Yields the fields of the message in bytes ``start`` to ``end``; skips their contents.

    Raises:
        WireError: the bytes are no message.
    """
    position = start
    while position < end:
        stream.seek(position)
        tag, position = _varint(stream, position, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise WireError("field number 0", cut_short=False)
        value = 0
        if wire_type == VARINT:
            content = position
            value, position = _varint(stream, position, end)
        elif wire_type == BYTES:
            length, content = _varint(stream, position, end)
            position = content + length
        elif wire_type in (_FIXED64, _FIXED32):
            content = position
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise WireError(f"wire type {wire_type}", cut_short=False)
        if position > end:
            raise WireError(f"field {number} goes on after the end", cut_short=True)
        yield Field(number=number, wire_type=wire_type, value=value, start=content, end=position)


def prefix(number: int, nbytes: int) -> bytes:
    """Returns the tag and the length in front of ``nbytes`` bytes of a ``BYTES`` field."""
    return varint(number << 3 | BYTES) + varint(nbytes)


def varint(value: int) -> bytes:
    """Returns a number of variable length."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(stream: IO[bytes], position: int, end: int) -> tuple[int, int]:
    """Returns a number and the position after it."""
    value = 0
    for index in range(_LONGEST_VARINT_BYTES):
        byte = stream.read(1) if position < end else b""
        if not byte:
            raise WireError("a number goes on after the end", cut_short=True)
        position += 1
        value |= (byte[0] & 0x7F) << (7 * index)
        if byte[0] < 0x80:
            return value, position
    raise WireError("a number without an end", cut_short=False)
