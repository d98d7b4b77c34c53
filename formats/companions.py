"""Finds the files next to a model file that hold its weights."""

from __future__ import annotations

from pathlib import Path

from qtool.formats import registry
from qtool.formats.base import SeveralFiles
from qtool.formats.detect import detect


def companion_files(path: Path) -> tuple[str, ...]:
    """Returns the files, relative to its folder, that belong to the model in ``path``: external data, or shards.

    Raises:
        FormatError: the model cannot be read, or such a file is missing or outside of its folder.
    """
    found = registry.load_source(detect(path).format)
    return found.companion_files(path) if isinstance(found, SeveralFiles) else ()
