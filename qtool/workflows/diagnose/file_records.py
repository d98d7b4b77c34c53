"""Records the files that a run reads and writes, with size and hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtool.fingerprint import data_sha256, file_sha256, path_bytes
from qtool.formats.companions import companion_files
from qtool.manifest import FileRecord

_DATA = "calib_data"


def file_record(path: Path, now: Path) -> FileRecord:
    """Returns the record of the file with the final path ``path``, currently at ``now``."""
    return FileRecord(path=path, sha256=file_sha256(now), bytes=path_bytes(now))


def model_record(path: Path, now: Path) -> FileRecord:
    """As ``file_record``, of a model, with its external weight files.

    Raises:
        FormatError: the model cannot be read, or such a file is missing.
    """
    weights = tuple(file_record(path.parent / name, now.parent / name) for name in companion_files(now))
    return FileRecord(path=path, sha256=file_sha256(now), bytes=path_bytes(now), weights=weights)


def data_records(sources: Sequence[str]) -> dict[str, FileRecord]:
    """Returns the records of all sources of samples, by their roles in manifests."""
    return {role: data_record(source) for role, source in zip(data_roles(len(sources)), sources, strict=True)}


def data_roles(count: int) -> tuple[str, ...]:
    """Returns the roles of so many sources of samples: ``calib_data``, ``calib_data_2`` and so on."""
    return tuple(_DATA if number == 1 else f"{_DATA}_{number}" for number in range(1, count + 1))


def data_record(source: str) -> FileRecord:
    """Returns the record of samples, see ``open_dataset``."""
    path = Path(source)
    return FileRecord(path=path, sha256=data_sha256(source), bytes=path_bytes(path) if path.exists() else None)
