"""Tells that the system does not map a file, which is not the file's fault.

torch maps files so that their tensors could be written to without changing the file. Linux counts that as private
memory: it refuses more than the machine has, swap included, and more than ``ulimit -d`` allows.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from qtool.formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_IN_TORCH = "unable to mmap"


@contextmanager
def telling_refused_mappings(path: Path) -> Iterator[None]:
    """Turns torch's error for that into one of a line.

    Raises:
        FormatError: the system does not map the file at ``path``.
    """
    try:
        yield
    except RuntimeError as error:
        if _IN_TORCH not in str(error):
            raise
        raise FormatError(
            f"the system does not map {path}, which has {path.stat().st_size / 1e9:.1f} GB: that is more than memory "
            "and swap, or than 'ulimit -d' allows",
            fix="add swap, raise the limit, or allow it with `sysctl vm.overcommit_memory=1`",
        ) from error
