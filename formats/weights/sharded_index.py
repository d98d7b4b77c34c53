"""Reads the index of weights that are spread over several files, as ``model.safetensors.index.json`` does.

Source: https://huggingface.co/docs/huggingface_hub/package_reference/serialization: ``weight_map`` names the file of
every tensor, relative to the index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qtool.formats.errors import FormatError
from qtool.formats.onnx.external_data import OutsideError

SHARDED_SUFFIX = ".safetensors.index.json"
_LARGEST_INDEX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """Says in which file each tensor is.

    Attributes:
        shards: the files, and the names of the tensors to take from each.
    """

    shards: Mapping[Path, tuple[str, ...]]


def weights_stem(path: Path) -> str:
    """Returns the name of a model file without its suffix, or without the several ones of an index."""
    return Path(path.name.removesuffix(".index.json")).stem


def is_index(path: Path, head: bytes) -> bool:
    """Returns whether a file that begins with ``head`` is such an index."""
    if not head.lstrip().startswith(b"{") or path.stat().st_size > _LARGEST_INDEX_BYTES:
        return False
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and isinstance(fields.get("weight_map"), dict)


def read_index(path: Path) -> ShardIndex:
    """Reads the index in ``path``, for which ``is_index`` holds, and finds its files.

    Links may lead only into the folder where the index's own link leads, as in the cache of Hugging Face.

    Raises:
        FormatError: a file is missing, or is not beside the index.
    """
    shards: dict[str, list[str]] = {}
    for tensor, name in json.loads(path.read_bytes())["weight_map"].items():
        shards.setdefault(name if isinstance(name, str) else repr(name), []).append(tensor)
    if not shards:
        raise FormatError(f"{path} names no tensors", fix="save the weights again")
    return ShardIndex(shards={_found(path, name): tuple(tensors) for name, tensors in sorted(shards.items())})


def _found(index: Path, name: str) -> Path:
    if not name or any(character in name for character in "/\\:\0") or name == "..":
        raise _outside(index, name)
    shard = index.parent / name
    if not shard.is_file():
        raise FormatError(f"{shard}, which {index} names, is missing", fix="copy it next to the index")
    if shard.suffix == ".json":
        raise FormatError(f"{index} names another index, {name}, instead of weights", fix="save the weights again")
    if shard.resolve().parent not in (index.parent.resolve(), index.resolve().parent):
        raise _outside(index, name)
    return shard


def _outside(index: Path, name: str) -> OutsideError:
    return OutsideError(
        f"{index} points outside of its folder: {name!r}", fix="do not use this file unless you trust it"
    )
