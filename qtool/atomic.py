"""Atomic writes: results are written next to their destination and moved when they are complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtool.errors import OutputError
from qtool.private_folder import private_folder, sweep_abandoned


def check_output(path: Path, *, force: bool) -> None:
    """Rejects a destination before any work is done for it.

    Raises:
        OutputError: its folder is missing, it is a folder, or it exists and ``force`` is off.
    """
    if not path.parent.is_dir():
        raise OutputError(f"the output folder {path.parent} does not exist", fix=f"create it: mkdir -p {path.parent}")
    if path.is_dir():
        raise OutputError(f"the output {path} is a folder", fix="name a file with -o")
    if path.exists() and not force:
        raise OutputError(
            f"the output {path} exists already", fix="pass --force to replace it, or name another with -o"
        )
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the output folder {path.parent} is not writable", fix="choose another folder with -o")


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yields a path of the same file name in a private folder next to ``destination``.

    Every file that is left in that folder when the block ends well (the file itself, external data) is
    moved beside the destination. When it ends badly, interrupts included, the folder goes and nothing else was touched;
    where the process is killed, the next one that writes there removes it.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    sweep_abandoned(destination.parent)
    sweep_abandoned()
    try:
        with private_folder(destination.parent) as folder:
            yield folder / destination.name
            # The file itself goes last: until then a reader sees the old one, or none.
            for part in sorted(folder.iterdir(), key=lambda part: part.name == destination.name):
                os.replace(part, destination.parent / part.name)
    except OSError as error:
        raise _translated(error, destination) from error


def _translated(error: OSError, destination: Path) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk is full: {destination} was not written", fix="free some space and run again")
    return OutputError(f"cannot write {destination}: {error.strerror or error}", fix="choose another place with -o")
