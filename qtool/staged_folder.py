"""Atomic writes of whole folders: a result is written beside its destination, and renamed when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qtool.errors import OutputError
from qtool.private_folder import private_folder, sweep_abandoned


def check_output_folder(path: Path, *, replaceable: Callable[[Path], bool], force: bool) -> None:
    """Rejects a destination before any work is done for it.

    Args:
        path: where the folder is to be.
        replaceable: tells whether a folder is of the kind that is going to be written, so that ``force`` may remove it.
        force: whether such a folder is replaced.

    Raises:
        OutputError: its parent is missing, it exists and ``force`` is off, or it holds other things.
    """
    parent = path.resolve().parent
    if not parent.is_dir():
        raise OutputError(f"the output folder {parent} does not exist", fix=f"create it: mkdir -p {parent}")
    if path.exists() and not path.is_dir():
        raise OutputError(f"the output {path} is a file", fix="name a folder with -o")
    if path.is_dir() and any(path.iterdir()):
        if not replaceable(path):
            raise OutputError(f"the output {path} holds other things", fix="name a new folder with -o")
        if not force:
            raise OutputError(
                f"the output {path} exists already", fix="pass --force to replace it, or name another with -o"
            )
    if not os.access(parent, os.W_OK):
        raise OutputError(f"the output folder {parent} is not writable", fix="choose another folder with -o")


@contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``destination``, which takes its place when the block ends well.

    When it ends badly, interrupts included, the new folder goes and the old one stays as it was.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    destination = destination.resolve()
    sweep_abandoned(destination.parent)
    sweep_abandoned()
    try:
        with private_folder(destination.parent) as scratch:
            staged = scratch / destination.name
            staged.mkdir()
            yield staged
            if destination.is_dir():
                # A folder cannot be replaced in one step; the old one goes with the private folder.
                aside = scratch / "replaced"
                aside.mkdir()
                destination.rename(aside / destination.name)
            staged.rename(destination)
    except OSError as error:
        raise OutputError(
            f"cannot write {destination}: {error.strerror or error}", fix="choose another place with -o"
        ) from error


def copy_files(files: tuple[Path, ...], folder: Path) -> None:
    """Copies ``files`` into ``folder`` under their names, what links point at included."""
    for file in files:
        shutil.copyfile(file, folder / file.name)
