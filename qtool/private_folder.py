"""Folders for files in the making, which go with the run that made them, or with the next one where it was killed.

A run holds a lock on its folder, which the system takes back whatever ends the process. A folder without one has lost
its producer; process numbers would not show that, since they are given out again, and differ between containers.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = ".qtool-writing-"


@contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yields a new, hidden folder in ``parent``, or where the system keeps temporary files; it goes at the end.

    Raises:
        OSError: it cannot be made.
    """
    folder, lock = _made(Path(tempfile.gettempdir()) if parent is None else parent)
    try:
        yield folder
    finally:
        # On Windows, files stay that a session still reads.
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep_abandoned(parent: Path | None = None) -> None:
    """Removes private folders in ``parent``, or among temporary files, whose process is gone.

    Those of running processes and of other people stay, and so does everything where files cannot be locked.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    with suppress(OSError), os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIX)]
        for folder in found:
            # Whoever makes a folder waits for this lock, and makes another one then.
            lock = _locked(folder, waits=False)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _made(parent: Path) -> tuple[Path, int | None]:
    """Returns a new folder and its lock; None where there are no locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _locked(folder, waits=True)
        # Between the two, another run may have taken it for abandoned.
        if folder.is_dir():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _locked(folder: Path, *, waits: bool) -> int | None:
    """Returns a descriptor that locks a folder of this user; None where that is not possible, or it is locked."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
