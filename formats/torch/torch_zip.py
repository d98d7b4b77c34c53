"""Distinguishes torch's kinds of zip files by the names of their members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto


class ZipKind(Enum):
    """What wrote a zip file."""

    CHECKPOINT = auto()
    TORCHSCRIPT = auto()
    EXPORTED = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class TorchZip:
    """Describes a zip file of torch.

    Attributes:
        kind: what wrote it.
        root: the folder that all of its members lie in.
    """

    kind: ZipKind
    root: str


def torch_zip(names: Sequence[str]) -> TorchZip:
    """Returns what a zip file with members of these names is."""
    root = names[0].split("/")[0] if names else ""
    inside = {name.removeprefix(f"{root}/") for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return TorchZip(ZipKind.TORCHSCRIPT, root)
    if "archive_format" in inside or any(name.startswith("models/") for name in inside):
        return TorchZip(ZipKind.EXPORTED, root)
    return TorchZip(ZipKind.CHECKPOINT if "data.pkl" in inside else ZipKind.OTHER, root)
