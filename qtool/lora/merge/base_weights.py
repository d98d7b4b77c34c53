"""Opens the weights that adapters are merged into: a file, files with an index, or the folder of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.formats import registry
from qtool.formats.base import SeveralFiles, Weights
from qtool.formats.detect import detect
from qtool.formats.mapped_tensors import tied_names
from qtool.formats.trust import NO_TRUST, Trust

if TYPE_CHECKING:
    import torch

# File names of weights in a model's folder, in order of preference.
_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseWeights:
    """The base model: its tensors, and how they are stored.

    Attributes:
        path: the file that was named, or that the folder holds.
        folder: the folder, where one was named.
        kind: its format, in words.
        weights: all of its tensors; they stay in their files until they are used.
        shards: the files that an index names.
        tied: for each name of a tied tensor but the first, the first one.
        trust: what its files may run.
    """

    path: Path
    folder: Path | None
    kind: str
    weights: Weights
    shards: tuple[Path, ...]
    tied: Mapping[str, str]
    trust: Trust

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.weights.tensors.items()}

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> BaseWeights:
        """Returns the base with other tensors."""
        return replace(self, weights=replace(self.weights, tensors=tensors), tied=tied_names(tensors))

    def untied(self, names: Collection[str]) -> BaseWeights:
        """Returns the base with some tied tensors untied."""
        if not names:
            return self
        tensors = {name: t.clone() if name in names else t for name, t in self.weights.tensors.items()}
        tied = {name: first for name, first in self.tied.items() if name not in names}
        return replace(self, weights=replace(self.weights, tensors=tensors), tied=tied)

    def first_name(self, name: str) -> str:
        """Returns the name under which a tensor is stored first."""
        return self.tied.get(name, name)


def open_base(path: Path, trust: Trust = NO_TRUST) -> BaseWeights:
    """Opens the weights in ``path``.

    Raises:
        FormatError: there is no such file, it is damaged, or needs more than ``trust`` allows.
        InputError: a folder without weights, or a file that holds a program instead.
    """
    folder = path if path.is_dir() else None
    file = path if folder is None else _in_folder(folder)
    detection = detect(file)
    found = registry.load_source(detection.format)
    if found.holds != "weights":
        raise InputError(
            f"{file} is {detection.detail}, and adapters are merged into weights",
            fix="name the .safetensors or .pth file that it was made from",
        )
    weights = found.read(file, trust)
    beside = found.companion_files(file) if isinstance(found, SeveralFiles) else ()
    return BaseWeights(
        path=file,
        folder=folder,
        kind=f"{detection.detail}, {weights.source}",
        weights=weights,
        shards=tuple(file.with_name(name) for name in beside),
        tied=tied_names(weights.tensors),
        trust=trust,
    )


def check_floats(name: str, tensor: torch.Tensor, base: Path) -> None:
    """Passes when a tensor can take a change.

    Raises:
        InputError: it holds integers, or floats of eight bits, so it was quantized.
    """
    import torch

    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise InputError(
            f"'{name}' in {base} holds {str(tensor.dtype).removeprefix('torch.')}: the base is quantized",
            fix="merge into the float weights that it was made from, then quantize the result",
        )


def _in_folder(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(child for child in folder.iterdir() if child.suffix == ".safetensors")
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"{folder} holds {'several files of weights' if found else 'no weights'}", fix="name the file of the base"
    )
