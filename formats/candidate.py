"""A file or folder whose format is asked for, with what formats look at to recognize it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qtool.formats.containers.zip_layout import open_zip, zip_defects
from qtool.formats.errors import FormatError

_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Recognized:
    """What a format says of one of its own files.

    Attributes:
        kind: what it is, in words, such as ``"ONNX, IR version 8"``.
        damage: what is wrong with it, as far as that shows without reading all of it; None where nothing is.
    """

    kind: str
    damage: FormatError | None = None


@dataclass(frozen=True)
class Candidate:
    """A file or folder of any kind; nothing in it is run, trusted or unpacked to disk.

    Attributes:
        path: where it is.
        head: its first bytes, a few thousand; empty for a folder, and for nothing else.
    """

    path: Path
    head: bytes

    @staticmethod
    def at(path: Path) -> Candidate:
        """Returns what is at ``path``.

        Raises:
            FormatError: there is no such file, or it is empty.
        """
        if path.is_dir():
            return Candidate(path, b"")
        if not path.exists():
            raise _missing(path)
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        if not head:
            raise FormatError(f"{path} is empty", fix="save or download the model again")
        return Candidate(path, head)

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size

    @property
    def is_zip(self) -> bool:
        """Whether it begins like a zip file, which is what torch goes by."""
        return self.head.startswith(b"PK")

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The names of all members of a zip file; none of other files.

        Raises:
            FormatError: its directory cannot be read.
        """
        if not self.is_zip:
            return ()
        with open_zip(self.path) as archive:
            return tuple(archive.namelist())

    @property
    def zip_damage(self) -> FormatError | None:
        """What makes a zip file unsafe to unpack; None where nothing does.

        Raises:
            FormatError: its directory cannot be read.
        """
        with open_zip(self.path) as archive, self.path.open("rb") as stream:
            defects = zip_defects(archive, stream, self.nbytes)
        if not defects:
            return None
        return FormatError(
            f"'{defects[0].member}' in the zip file {self.path} {defects[0].reason}",
            fix="do not use this file unless you trust it; save it again with torch.save",
        )


def _missing(path: Path) -> FormatError:
    if path.is_symlink():
        return FormatError(f"{path} is a broken link", fix="fetch its target again")
    if not path.parent.is_dir():
        return FormatError(f"there is no file {path}: its folder does not exist either", fix="check the path")
    near = difflib.get_close_matches(path.name, sorted(child.name for child in path.parent.iterdir()), n=1)
    fix = f"did you mean {path.parent / near[0]}?" if near else "check the path"
    return FormatError(f"there is no file {path}", fix=fix)
