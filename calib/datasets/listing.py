"""Lists the files of a folder of samples."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from qtool.calib.datasets.stored import open_npy
from qtool.calib.errors import CalibError
from qtool.calib.specs import Array

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TEXT_SUFFIXES = frozenset({".txt", ".md"})


def sample_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Returns the files of these kinds in ``folder`` and its subfolders, in natural order: 2 comes before 10.

    Files and folders whose names begin with a dot or an underscore are skipped.

    Raises:
        CalibError: the folder cannot be listed.
    """
    try:
        found = [path for path in _walk(folder) if path.suffix.lower() in suffixes]
    except OSError as error:
        raise CalibError(
            f"the folder {error.filename or folder} cannot be listed: {error.strerror or error}",
            fix="check its permissions",
        ) from error
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))


def natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Returns a key that sorts runs of digits as numbers, the same on every machine."""
    text = path.as_posix()
    parts = re.findall(r"([0-9]+)|([^0-9]+)", text)
    return [(0, int(digits), "") if digits else (1, 0, other.lower()) for digits, other in parts], text


def side_array(folder: Path, name: str) -> Array | None:
    """Loads ``NAME.npy``, such as labels, next to the samples; None where there is none.

    Only names that begin with an underscore are loaded: all others are samples.

    Raises:
        CalibError: the file is damaged or holds Python objects.
    """
    path = folder / f"{name}.npy"
    if not name.startswith("_") or path.parent != folder or not path.is_file():
        return None
    return open_npy(path).load()


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path
