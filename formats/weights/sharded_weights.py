"""Reads and writes weights that are spread over several files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from qtool.formats import registry
from qtool.formats.audit import audit
from qtool.formats.base import Weights
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.containers.pickle_globals import Meaning
from qtool.formats.detect import detect
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.mapped_tensors import few_at_a_time, tied_names
from qtool.formats.onnx.external_data import OutsideError
from qtool.formats.trust import NO_TRUST, Trust
from qtool.formats.weights.safetensors_file import SafetensorsFile
from qtool.formats.weights.sharded_index import SHARDED_SUFFIX, ShardIndex, is_index, read_index

if TYPE_CHECKING:
    import torch


_LONGEST_LIST = 3


class ShardedWeights:
    """Reads ``*.index.json`` and the ``.safetensors`` or ``.bin`` files that it names."""

    holds: ClassVar[Literal["weights"]] = "weights"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes JSON objects with a ``weight_map``."""
        return Recognized("sharded weights") if is_index(file.path, file.head) else None

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Looks through every file that the index names.

        Raises:
            FormatError: a file is missing, or not a known model file.
        """
        try:
            shards = list(read_index(path).shards)
        except OutsideError as error:
            notes.add(Risk.REACHES_OUTSIDE, path.name, error.problem)
            return
        for shard in shards:
            notes.files.append(shard.name)
            found = audit(shard)
            notes.calls += found.calls
            notes.imports |= dict.fromkeys(found.imports, Meaning.OBJECT)
            notes.findings += [replace(finding, where=f"{shard.name}: {finding.where}") for finding in found.findings]

    def companion_files(self, path: Path) -> tuple[str, ...]:
        """Returns the names of the files that the index names.

        Raises:
            FormatError: a file is missing, or is not beside the index.
        """
        return tuple(shard.name for shard in read_index(path).shards)

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the tensors that the index names, and others in its files; they stay there until they are used.

        Raises:
            FormatError: a file is missing, damaged, outside of the folder, lacks a tensor that the index expects in
                it, or would do more than ``trust`` allows; or two files have a tensor that the index does not name.
        """
        index = read_index(path)
        size = sum(shard.stat().st_size for shard in index.shards)
        tensors = few_at_a_time(lambda: _merged(path, index, trust).tensors, size)
        listed = {name for names in index.shards.values() for name in names}
        more = [name for name in tensors if name not in listed]
        source = f"{len(tensors)} tensors in {len(index.shards)} files"
        if more:
            source += f", {len(more)} of them not in the index: {', '.join(more[:_LONGEST_LIST])}"
            source += ", …" if len(more) > _LONGEST_LIST else ""
        return Weights(tensors=tensors, metadata=_merged(path, index, trust).metadata, source=source)


def read_shard(shard: Path, index: Path, trust: Trust) -> Weights:
    """Reads one of the files that ``index`` names.

    Raises:
        FormatError: it is damaged, holds no weights by name, or would do more than ``trust`` allows.
    """
    detection = detect(shard)
    found = registry.load_source(detection.format)
    if found.holds != "weights":
        raise FormatError(
            f"{shard}, which {index} names, is {detection.detail} instead of weights", fix="save the weights again"
        )
    return found.read(shard, trust)


def _merged(path: Path, index: ShardIndex, trust: Trust) -> Weights:
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    listed = {name for names in index.shards.values() for name in names}
    for shard, names in index.shards.items():
        held = read_shard(shard, path, trust)
        missing = [name for name in names if name not in held.tensors]
        if missing:
            raise FormatError(
                f"{shard} has no tensor '{missing[0]}', which {path} says is in it", fix="download both again"
            )
        # Those who load such weights take every file whole, whatever the index says.
        others = [name for name in held.tensors if name not in listed]
        twice = [name for name in others if name in tensors]
        if twice:
            raise FormatError(
                f"{path} does not say which of its files '{twice[0]}' is from, and two have it",
                fix="name its file in weight_map, or save the weights again",
            )
        tensors |= {name: held.tensors[name] for name in (*names, *others)}
        metadata |= held.metadata
    return Weights(tensors=tensors, metadata=metadata, source="")


def write_shards(weights: Weights, index: Path, *, max_shard_bytes: int) -> None:
    """Writes ``.safetensors`` files of at most ``max_shard_bytes``, and the index that names the file of each tensor.

    Tensors keep their order; tied ones go to one file, so that they stay tied. A tensor larger than the limit gets a
    file of its own. The same weights give the same bytes.

    Args:
        weights: the weights.
        index: where the index goes, ``model.safetensors.index.json``; the other files are named after it.
        max_shard_bytes: the limit.

    Raises:
        FormatError: as ``SafetensorsFile.write``.
    """
    shards = _divided(weights, max_shard_bytes)
    stem = index.name.removesuffix(SHARDED_SUFFIX)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        shard = index.with_name(f"{stem}-{number:05}-of-{len(shards):05}.safetensors")
        part = Weights(
            tensors={name: weights.tensors[name] for name in names}, metadata=weights.metadata, source=weights.source
        )
        SafetensorsFile().write(part, shard)
        places |= dict.fromkeys(names, shard.name)
    fields = {
        "metadata": {"total_size": sum(_nbytes(tensor) for tensor in weights.tensors.values())},
        "weight_map": dict(sorted(places.items())),
    }
    index.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _divided(weights: Weights, max_shard_bytes: int) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    tied = tied_names(weights.tensors)
    for name in weights.tensors:
        groups.setdefault(tied.get(name, name), []).append(name)
    shards: list[list[str]] = [[]]
    held = 0
    for names in groups.values():
        nbytes = sum(_nbytes(weights.tensors[name]) for name in names)
        if shards[-1] and held + nbytes > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1] += names
        held += nbytes
    return shards


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
