"""Holds the tensors of large files so that going through them takes the memory of a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from qtool.formats.tied import ties

if TYPE_CHECKING:
    import torch

# What is mapped of a file counts as the process's memory until the mapping goes.
_LARGEST_MAPPED_BYTES = 512 << 20


class MappedTensors(Mapping[str, "torch.Tensor"]):
    """Gives out tensors that are mapped from a file, and maps the file again now and then.

    Whoever goes through them, and lets go of each before the next, holds no more than about half a gigabyte. Names of
    one tensor see the same memory only as long as the file is not mapped again; ``tied`` says which they are.

    Attributes:
        tied: for each name of a tied tensor but the first, the first one.
    """

    def __init__(self, mapped: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Takes what maps the file; it is called now, and again whenever much has been given out."""
        self._map = mapped
        self._tensors = mapped()
        self._names = tuple(self._tensors)
        self._given_bytes = 0
        self.tied: Mapping[str, str] = ties(self._tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Returns one tensor."""
        tensor = self._tensors[name]
        nbytes = tensor.numel() * tensor.element_size()
        if self._given_bytes and self._given_bytes + nbytes > _LARGEST_MAPPED_BYTES:
            del tensor
            self._tensors = {}
            self._tensors = self._map()
            self._given_bytes = 0
            tensor = self._tensors[name]
        self._given_bytes += nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Goes through the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Counts the tensors."""
        return len(self._names)


def few_at_a_time(mapped: Callable[[], Mapping[str, torch.Tensor]], file_bytes: int) -> Mapping[str, torch.Tensor]:
    """Returns what ``mapped`` gives, for files that are large in a form that gives out a few tensors at a time."""
    return MappedTensors(mapped) if file_bytes > 2 * _LARGEST_MAPPED_BYTES else mapped()


def tied_names(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, str]:
    """Returns, for each name of a tied tensor but the first, the first one; as ``ties``."""
    return tensors.tied if isinstance(tensors, MappedTensors) else ties(tensors)
