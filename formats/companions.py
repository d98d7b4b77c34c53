"""Finds the files next to a model file that hold its weights."""

from __future__ import annotations

from pathlib import Path

from qtool.formats.detect import detect
from qtool.formats.weights.sharded_index import read_index


def companion_files(path: Path) -> tuple[str, ...]:
    """Returns the files, relative to its folder, that belong to the model in ``path``: external data, or shards.

    Raises:
        FormatError: the model cannot be read, or such a file is missing or outside of its folder.
    """
    kind = detect(path).format
    if kind == "sharded":
        return tuple(shard.name for shard in read_index(path).shards)
    if kind == "onnx":
        from qtool.formats.onnx.onnx_file import external_files

        return external_files(path)
    return ()
