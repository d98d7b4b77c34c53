"""Writes merged weights in the format of their base: one file, shards with an index, or a model folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.atomic import check_output, staged
from qtool.errors import OutputError, UsageError
from qtool.formats.base import Weights
from qtool.formats.mapped_tensors import few_at_a_time, tied_names
from qtool.formats.torch.torch_checkpoint import TorchCheckpoint
from qtool.formats.weights.safetensors_file import SafetensorsFile
from qtool.formats.weights.sharded_index import SHARDED_SUFFIX, read_index, weights_stem
from qtool.formats.weights.sharded_weights import read_shard
from qtool.lora.merge.added_tokens import count_tokens, grown
from qtool.lora.merge.base_weights import BaseWeights
from qtool.lora.merge.ties import untie_config

if TYPE_CHECKING:
    import torch

    from qtool.formats.base import Change

_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_WEIGHT_SUFFIXES = (*_TORCH_SUFFIXES, ".safetensors", ".onnx", ".h5", ".msgpack", ".gguf", ".data")
_INDEX_ENDING = ".index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedOutput:
    """The destination of the result.

    Attributes:
        path: the file or folder.
        file: the weights: the file itself, one in the folder, or the index of several.
        folder: the folder, where the result is one.
    """

    path: Path
    file: Path
    folder: Path | None

    @staticmethod
    def of(
        base: BaseWeights, output: Path | None, output_dir: Path | None, *, action: str, force: bool
    ) -> MergedOutput:
        """Determines the destination of the result, and rejects invalid ones.

        Args:
            base: the base.
            output: what was named; None for a name made of the base's and ``action``.
            output_dir: the folder of a result that was not named.
            action: the suffix of the name, such as ``"merged"``.
            force: whether a result that exists may be replaced.

        Raises:
            UsageError: the result would replace the base, or its suffix is not supported.
            OutputError: it exists already, or its folder is missing or not writable.
        """
        named = output or _default(base, output_dir, action)
        if base.folder is not None and not _is_weights_name(named.name):
            return _folder_output(base, named, force=force)
        suffix_fits = _is_weights_name(named.name)
        if not suffix_fits or (named.name.endswith(_INDEX_ENDING) and not base.shards):
            raise UsageError(
                f"the output {named} has no suffix that weights of this base are stored under",
                fix="name a .safetensors or .pth file"
                + (f", or *{SHARDED_SUFFIX} for several files" if base.shards else ""),
            )
        if named.exists() and named.samefile(base.path):
            raise UsageError(f"the result would replace the base {named} itself", fix="name another file with -o")
        check_output(named, force=force)
        return MergedOutput(path=named, file=named, folder=None)

    def write(
        self,
        base: BaseWeights,
        change: Change,
        new: Mapping[str, torch.Tensor],
        *,
        untied: bool,
        rows: Mapping[str, int],
    ) -> None:
        """Writes the base's tensors as ``change`` returns them, one at a time.

        Args:
            base: the base.
            change: returns a tensor's new values, in blocks of rows.
            new: additional tensors.
            untied: whether the head is no longer tied, which the configuration has to record.
            rows: the number of rows of tensors that grew for added tokens, by name.

        Raises:
            OutputError: the disk is full or the place is not writable.
            FormatError: the format cannot hold a tensor.
        """
        with self._made_folder(), staged(self.file) as path:
            if self.folder is not None and base.folder is not None:
                _copy_rest(base.folder, path.parent)
                if untied:
                    untie_config(path.parent)
                if rows:
                    count_tokens(path.parent, max(rows.values()))
            if path.name.endswith(_INDEX_ENDING):
                _write_shards(base, path, change, new, rows)
            elif path.suffix in _TORCH_SUFFIXES:
                _write_checkpoint(base, path, change, new)
            else:
                SafetensorsFile().write(_with_new(base.weights, new), path, change)

    @contextmanager
    def _made_folder(self) -> Iterator[None]:
        made = self.folder is not None and not self.folder.exists()
        if self.folder is not None and made:
            self.folder.mkdir()
        try:
            yield
        except BaseException:  # an interrupt must not leave incomplete files either
            if self.folder is not None and made:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise


def written_bytes(output: MergedOutput, base: BaseWeights) -> int:
    """Returns the total size of the written files of weights."""
    if not output.file.name.endswith(_INDEX_ENDING):
        return output.file.stat().st_size
    return sum(output.file.with_name(name).stat().st_size for name in set(_shard_names(base, output.file).values()))


def _default(base: BaseWeights, output_dir: Path | None, action: str) -> Path:
    if base.folder is not None:
        return (output_dir or base.folder.resolve().parent) / f"{base.folder.resolve().name}-{action}"
    ending = SHARDED_SUFFIX if base.shards else base.path.suffix
    if not _is_weights_name(f"base{ending}"):
        ending = SafetensorsFile.suffix
    return (output_dir or base.path.parent) / f"{weights_stem(base.path)}.{action}{ending}"


def _is_weights_name(name: str) -> bool:
    return name.endswith((*_TORCH_SUFFIXES, ".safetensors", SHARDED_SUFFIX))


def _folder_output(base: BaseWeights, named: Path, *, force: bool) -> MergedOutput:
    if base.folder is not None and named.exists() and named.samefile(base.folder):
        raise UsageError(f"the result would replace the base {named} itself", fix="name another folder with -o")
    if named.is_file():
        raise OutputError(f"the output {named} is a file, and the base a folder", fix="name a folder with -o")
    if named.is_dir() and any(named.iterdir()) and not force:
        raise OutputError(
            f"the output folder {named} is not empty", fix="pass --force to replace its content, or name another"
        )
    name = base.path.name.replace(".bin", ".safetensors").replace("pytorch_model", "model")
    if not named.exists():
        check_output(named, force=force)
    return MergedOutput(path=named, file=named / name, folder=named)


def _copy_rest(source: Path, target: Path) -> None:
    """Copies the other files of a model folder: its configuration, its tokenizer."""
    for child in sorted(source.iterdir()):
        if child.is_file() and child.suffix not in _WEIGHT_SUFFIXES and not child.name.endswith(_INDEX_ENDING):
            shutil.copyfile(child, target / child.name)


def _shard_names(base: BaseWeights, index: Path) -> dict[Path, str]:
    stem = index.name.removesuffix(SHARDED_SUFFIX)
    count = len(base.shards)
    return {shard: f"{stem}-{number:05}-of-{count:05}.safetensors" for number, shard in enumerate(base.shards, 1)}


def _with_new(weights: Weights, new: Mapping[str, torch.Tensor]) -> Weights:
    if not new:
        return weights
    nbytes = sum(tensor.nbytes for tensor in weights.tensors.values())
    return replace(weights, tensors=few_at_a_time(lambda: {**weights.tensors, **new}, nbytes))


def _write_shards(
    base: BaseWeights, index: Path, change: Change, new: Mapping[str, torch.Tensor], rows: Mapping[str, int]
) -> None:
    places: dict[str, str] = {}
    names = _shard_names(base, index)
    total = 0
    shards = read_index(base.path).shards
    listed = {name for tensors in shards.values() for name in tensors}
    for shard, tensors in shards.items():
        # One file at a time, so that its memory map is released before the next one.
        weights = read_shard(shard, base.path, base.trust)
        tensors = (*tensors, *(name for name in weights.tensors if name not in listed))
        apart = tied_names(weights.tensors).keys() - base.tied.keys()
        if apart:
            tensors_apart = {name: t.clone() if name in apart else t for name, t in weights.tensors.items()}
            weights = replace(weights, tensors=tensors_apart)
        here = {name: count for name, count in rows.items() if name in weights.tensors}
        weights = replace(weights, tensors=grown(weights.tensors, here)) if here else weights
        if shard == base.shards[-1]:
            weights, tensors = _with_new(weights, new), (*tensors, *new)
        SafetensorsFile().write(weights, index.with_name(names[shard]), change)
        places |= dict.fromkeys(tensors, names[shard])
        total += sum(weights.tensors[name].nbytes for name in tensors)
    fields = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    index.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _whole(tensor: torch.Tensor, parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """Concatenates blocks of rows; the first one may be the tensor itself, or all of it."""
    import torch

    whole, row = torch.empty_like(tensor, memory_format=torch.contiguous_format), 0
    for part in parts:
        if part.shape == tensor.shape:
            return part
        whole[row : row + len(part)] = part
        row += len(part)
    return whole


def _write_checkpoint(base: BaseWeights, path: Path, change: Change, new: Mapping[str, torch.Tensor]) -> None:
    merged: dict[str, torch.Tensor] = {}
    for name, tensor in base.weights.tensors.items():
        first = base.first_name(name)
        merged[name] = merged[first] if first in merged else _whole(tensor, change(name, tensor))
    added = {name: _whole(tensor, change(name, tensor)) for name, tensor in new.items()}
    TorchCheckpoint().write(Weights(tensors=merged | added, metadata={}, source=""), path)
