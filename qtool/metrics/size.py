"""Size of a model on disk."""

from __future__ import annotations

from pathlib import Path

from qtool.errors import InputError
from qtool.formats.errors import FormatError
from qtool.formats.onnx.onnx_file import external_files


def model_bytes(path: Path) -> int:
    """Returns the bytes of an ONNX file and of its external data files, each counted once.

    Raises:
        InputError: it does not exist, is not an ONNX model, or a file with its weights is missing.
    """
    if not path.is_file():
        raise InputError(f"there is no model at {path}", fix="check the path")
    try:
        parts = external_files(path)
    except FormatError as error:
        raise InputError(error.problem, fix=error.fix) from error
    return path.stat().st_size + sum((path.parent / part).stat().st_size for part in parts)
