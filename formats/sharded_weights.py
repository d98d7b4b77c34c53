"""Reads weights that are spread over several files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from formats import registry
from formats.base import Weights
from formats.detect import detect
from formats.errors import FormatError
from formats.sharded_index import read_index
from formats.trust import NO_TRUST, Trust

if TYPE_CHECKING:
    import torch


class ShardedWeights:
    """Reads ``*.index.json`` and the ``.safetensors`` or ``.bin`` files that it names."""

    holds: ClassVar[Literal["weights"]] = "weights"

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the tensors that the index names; they stay in their files until they are used.

        Raises:
            FormatError: a file is missing, damaged, outside of the folder, lacks a tensor that the index expects in
                it, or would do more than ``trust`` allows.
        """
        tensors: dict[str, torch.Tensor] = {}
        metadata: dict[str, str] = {}
        index = read_index(path)
        for shard, names in index.shards.items():
            found = registry.load(detect(shard).format)
            if found.holds != "weights":
                raise FormatError(f"{shard}, which {path} names, holds no weights", fix="save the weights again")
            held = found.read(shard, trust)
            missing = [name for name in names if name not in held.tensors]
            if missing:
                raise FormatError(
                    f"{shard} has no tensor '{missing[0]}', which {path} says is in it", fix="download both again"
                )
            tensors |= {name: held.tensors[name] for name in names}
            metadata |= held.metadata
        return Weights(
            tensors=tensors, metadata=metadata, source=f"{len(tensors)} tensors in {len(index.shards)} files"
        )
