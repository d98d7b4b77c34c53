"""Takes down which bytes a run reads and writes."""

from __future__ import annotations

from pathlib import Path

from formats.companions import companion_files
from qtool.fingerprint import data_sha256, file_sha256, path_bytes
from qtool.manifest import FileRecord


def file_record(path: Path, now: Path) -> FileRecord:
    """Returns the record of the file that will stand at ``path`` and lies at ``now``."""
    return FileRecord(path=path, sha256=file_sha256(now), bytes=path_bytes(now))


def model_record(path: Path, now: Path) -> FileRecord:
    """As ``file_record``, of a model, with the files beside it that hold its weights.

    Raises:
        FormatError: the model cannot be read, or such a file is missing.
    """
    weights = tuple(file_record(path.parent / name, now.parent / name) for name in companion_files(now))
    return FileRecord(path=path, sha256=file_sha256(now), bytes=path_bytes(now), weights=weights)


def data_record(source: str) -> FileRecord:
    """Returns the record of samples, given as ``open_dataset`` takes them."""
    path = Path(source)
    return FileRecord(path=path, sha256=data_sha256(source), bytes=path_bytes(path) if path.exists() else None)
