"""Iterates over the operations of a pickle without executing them.

Source: the tables in Python's own ``pickletools``, which give the argument of every operation.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

# Longer strings and bytes are skipped: no name is that long.
_LONGEST_ARGUMENT_BYTES = 1 << 20
# A tensor takes about forty operations; this is a quarter of a million tensors, and some seconds.
_MOST_OPERATIONS = 10_000_000
_TWO_LINES = frozenset({"GLOBAL", "INST"})

_KNOWN = {operation.code: operation for operation in pickletools.opcodes}
_COUNT_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class PickleError(ValueError):
    """The bytes are not a complete pickle."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An argument that is too long to be read.

    Attributes:
        nbytes: how long it is.
    """

    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a pickle.

    Attributes:
        name: its name in ``pickletools``, such as ``GLOBAL``.
        argument: its argument: a number, a text, bytes, or nothing.
        position: its offset in the file.
    """

    name: str
    argument: int | str | bytes | Skipped | None
    position: int


def operations(stream: IO[bytes], start: int, end: int) -> Iterator[Operation]:
    """Yields the operations of the pickle that begins at byte ``start``, up to and with its STOP.

    The stream is after the STOP afterwards. At most a megabyte is held at a time, for any claimed length.

    Raises:
        PickleError: a byte is not an operation, an argument ends after ``end``, or there are too many operations.
    """
    stream.seek(start)
    for _ in range(_MOST_OPERATIONS):
        position = stream.tell()
        code = stream.read(1) if position < end else b""
        known = _KNOWN.get(code.decode("latin-1")) if code else None
        if not code:
            raise PickleError(f"it ends at byte {position:,} without its last operation")
        if known is None:
            raise PickleError(f"byte {position:,} ({code.hex()}) is not an operation of a pickle")
        yield Operation(name=known.name, argument=_argument(known, stream, end), position=position)
        if known.name == "STOP":
            return
    raise PickleError(f"it has more than {_MOST_OPERATIONS:,} operations")


def _argument(known: pickletools.OpcodeInfo, stream: IO[bytes], end: int) -> int | str | bytes | Skipped | None:
    if known.arg is None:
        return None
    if known.arg.n == pickletools.UP_TO_NEWLINE:
        lines = [_line(stream, end) for _ in range(2 if known.name in _TWO_LINES else 1)]
        return " ".join(lines)
    if known.arg.n < 0:
        width = _COUNT_BYTES[known.arg.n]
        nbytes = int.from_bytes(_exactly(stream, width, end), "little")
        if nbytes > end - stream.tell():
            raise PickleError(f"{known.name} claims {nbytes:,} bytes, more than there are")
        if nbytes > _LONGEST_ARGUMENT_BYTES:
            stream.seek(nbytes, 1)
            return Skipped(nbytes)
        return _decoded(known.name, _exactly(stream, nbytes, end))
    content = _exactly(stream, known.arg.n, end)
    return content if known.name == "BINFLOAT" else int.from_bytes(content, "little", signed=known.name == "BININT")


def _decoded(name: str, content: bytes) -> int | str | bytes:
    if name.startswith("LONG"):
        return int.from_bytes(content, "little", signed=True)
    if "UNICODE" in name or name == "SHORT_BINSTRING" or name == "BINSTRING":
        return content.decode("utf-8", errors="replace")
    return content


def _line(stream: IO[bytes], end: int) -> str:
    line = stream.readline(min(_LONGEST_ARGUMENT_BYTES, max(end - stream.tell(), 0)))
    if not line.endswith(b"\n"):
        raise PickleError("a line of it is truncated, or longer than any name")
    return line[:-1].decode("utf-8", errors="replace")


def _exactly(stream: IO[bytes], nbytes: int, end: int) -> bytes:
    content = stream.read(nbytes) if nbytes <= end - stream.tell() else b""
    if len(content) != nbytes:
        raise PickleError("it is truncated in the middle of an operation")
    return content
