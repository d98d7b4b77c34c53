"""Checks how a zip file is laid out, before anything in it is unpacked.

Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.7 (local headers) and 4.3.12 (the
central directory). Readers differ in which of the two they believe, so both have to say the same.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from qtool.formats.errors import FormatError

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
LOCAL_MAGIC = b"PK\x03\x04"
_ENCRYPTED = 0x1
# Deflate reaches a factor of 1032; weights never come near a tenth of that, and torch does not compress them at all.
_LARGEST_RATIO = 100
_SMALLEST_BOMB_BYTES = 64 << 20
_MOST_MEMBERS = 500_000
_UNPACKING_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


class Defect(StrEnum):
    """What is wrong with a member."""

    OUTSIDE = "reaches outside"
    LAYOUT = "does not add up"


@dataclass(frozen=True, slots=True)
class ZipDefect:
    """Describes what is wrong with one member.

    Attributes:
        member: its name.
        kind: what sort of thing.
        reason: the same in words.
    """

    member: str
    kind: Defect
    reason: str


def open_zip(source: Path | IO[bytes], where: str | None = None) -> zipfile.ZipFile:
    """Opens a zip file to look at its directory; ``where`` is what errors call it, the path by default.

    Raises:
        FormatError: it is damaged or truncated, or has too many members to be a model.
    """
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise FormatError(
            f"{where or source} begins like a torch checkpoint (a zip file) but is damaged or truncated",
            fix="save or download it again",
        ) from error
    if len(archive.infolist()) > _MOST_MEMBERS:
        archive.close()
        raise FormatError(
            f"{where or source} is a zip file with more than {_MOST_MEMBERS:,} members, which no model has",
            fix="get the model from where you trust it",
        )
    return archive


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, limit: int) -> bytes:
    """Unpacks one member.

    Raises:
        FormatError: it is larger than ``limit`` bytes, or damaged.
    """
    if member.file_size > limit:
        raise FormatError(f"is larger than {limit:,} bytes", fix="get the model from where you trust it")
    return first_bytes(archive, member, limit)


def first_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo, count: int) -> bytes:
    """Unpacks the first ``count`` bytes of a member.

    Raises:
        FormatError: it is damaged.
    """
    with unpacked(archive, member) as stream:
        return stream.read(count)


@contextmanager
def unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """Yields a member as a stream that is unpacked while it is read.

    Raises:
        FormatError: it is damaged.
    """
    try:
        with archive.open(member) as stream:
            yield stream
    except _UNPACKING_ERRORS as error:
        raise FormatError(f"is damaged: {error}", fix="save or download it again") from error


def zip_defects(archive: zipfile.ZipFile, stream: IO[bytes], size: int) -> tuple[ZipDefect, ...]:
    """Returns all that makes the file unsafe to unpack: nothing, for what torch writes.

    Args:
        archive: the zip file.
        stream: its bytes.
        size: how many these are.
    """
    members = archive.infolist()
    return (
        *_twice(members),
        *(defect for member in members for defect in _member_defects(member)),
        *_misplaced(members, stream, size),
    )


def _twice(members: Sequence[zipfile.ZipInfo]) -> Iterator[ZipDefect]:
    for name, count in Counter(member.filename for member in members).items():
        if count > 1:
            yield ZipDefect(
                name,
                Defect.LAYOUT,
                f"is there {'twice' if count == 2 else f'{count} times'}, so readers disagree about it",
            )


def _member_defects(member: zipfile.ZipInfo) -> Iterator[ZipDefect]:
    # zipfile itself cuts names at a NUL, and turns backslashes into slashes on Windows only.
    name = member.orig_filename
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\")) or parts[0][1:2] == ":" or "\0" in name:
        yield ZipDefect(name, Defect.OUTSIDE, "would be unpacked outside of its folder")
    if not name:
        yield ZipDefect(name, Defect.LAYOUT, "a member has no name")
    if stat.S_ISLNK(member.external_attr >> 16):
        yield ZipDefect(name, Defect.OUTSIDE, "is a link")
    if member.flag_bits & _ENCRYPTED:
        yield ZipDefect(name, Defect.LAYOUT, "is encrypted")
    if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        yield ZipDefect(name, Defect.LAYOUT, "is not compressed, but has two different sizes")
    if member.file_size > max(_SMALLEST_BOMB_BYTES, _LARGEST_RATIO * member.compress_size):
        yield ZipDefect(
            name, Defect.LAYOUT, f"unpacks {member.compress_size:,} bytes to {member.file_size:,}, as a zip bomb does"
        )


def _misplaced(members: Sequence[zipfile.ZipInfo], stream: IO[bytes], size: int) -> Iterator[ZipDefect]:
    """Compares the directory with the header before each member, and the members' places with each other."""
    taken = 0
    first = min(members, key=lambda member: member.header_offset, default=None)
    if first is not None and first.header_offset:
        # Readers then count the places of members from different beginnings.
        yield ZipDefect(first.filename, Defect.LAYOUT, f"begins after {first.header_offset:,} bytes of something else")
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < taken:
            yield ZipDefect(member.filename, Defect.LAYOUT, "lies over the member before it")
            continue
        stream.seek(member.header_offset)
        head = stream.read(_LOCAL_HEADER.size)
        if len(head) < _LOCAL_HEADER.size or not head.startswith(LOCAL_MAGIC):
            yield ZipDefect(member.filename, Defect.LAYOUT, "is not where the directory says")
            continue
        *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(head)
        encoding = "utf-8" if member.flag_bits & 0x800 else "cp437"
        if stream.read(name_bytes) != member.orig_filename.encode(encoding, errors="replace"):
            yield ZipDefect(member.filename, Defect.LAYOUT, "has another name in its own header than in the directory")
        taken = stream.tell() + extra_bytes + member.compress_size
        if taken > size:
            yield ZipDefect(member.filename, Defect.LAYOUT, "ends after the end of the file")
