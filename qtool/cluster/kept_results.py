"""Results of tasks on disk, from which a run goes on that was ended in the middle."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from qtool.atomic import staged
from qtool.reporting.surroundings import versions

_LONGEST_KEPT_SECONDS = 30 * 24 * 3600.0


class KeptResults(Protocol):
    """Results by the key of their task."""

    def read(self, key: str) -> bytes | None:
        """Returns the result of a task, which may be damaged; None where none is kept."""
        ...

    def write(self, key: str, result: bytes) -> None:
        """Keeps the result of a task.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        ...


class NothingKept:
    """Keeps nothing."""

    def read(self, key: str) -> bytes | None:
        """Returns None."""
        return None

    def write(self, key: str, result: bytes) -> None:
        """Drops the result."""


NOTHING_KEPT: KeptResults = NothingKept()


class ResultFolder:
    """A folder with one file a result."""

    def __init__(self, folder: Path) -> None:
        """Uses ``folder``, which is made when it is needed."""
        self._folder = folder

    def read(self, key: str) -> bytes | None:
        """Returns the content of the file for ``key``; None where there is none."""
        with suppress(OSError):
            return self._path(key).read_bytes()
        return None

    def write(self, key: str, result: bytes) -> None:
        """Writes the file for ``key``, whole or not at all.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        # The same command, given twice at a time, may have ended elsewhere.
        self._folder.mkdir(parents=True, exist_ok=True)
        with staged(self._path(key)) as path:
            path.write_bytes(result)

    def _path(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()


@contextmanager
def results_kept(parent: Path | None = None) -> Iterator[Callable[[str], KeptResults]]:
    """Yields what returns a folder for the results of the work of a name; a run that ends well removes all of them.

    Other versions of qtool, or of what it runs models with, have other folders. Those of runs that were never taken up
    again go after a month.

    Args:
        parent: where the folders are; None for qtool's folder in the user's cache.
    """
    parent = _cache() if parent is None else parent
    stamp = sorted(versions().items())
    folders: list[Path] = []

    def place(name: str) -> KeptResults:
        folder = parent / hashlib.sha256(f"{name} {stamp}".encode()).hexdigest()[:32]
        _drop_old(parent, folder)
        folders.append(folder)
        return ResultFolder(folder)

    yield place
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "qtool" / "tasks"


def _drop_old(parent: Path, kept: Path) -> None:
    with suppress(OSError):
        for folder in parent.iterdir():
            if folder != kept and time.time() - folder.stat().st_mtime > _LONGEST_KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
