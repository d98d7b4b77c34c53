"""Iterates over the tensors of large files in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from qtool.formats.tied import ties

if TYPE_CHECKING:
    import torch

# Mapped pages count as the process's memory until the mapping is released.
_LARGEST_MAPPED_BYTES = 512 << 20


class MappedTensors(Mapping[str, "torch.Tensor"]):
    """Returns tensors that are mapped from a file, and renews the mapping regularly.

    A caller that releases each tensor before the next one holds about half a gigabyte at most. Tied names share
    memory only as long as the mapping is not renewed; ``tied`` lists them.

    Attributes:
        tied: for each name of a tied tensor but the first, the first one.
    """

    def __init__(self, mapped: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Takes the function that maps the file; it is called now, and again whenever much has been returned."""
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


class DecodedTensors(Mapping[str, "torch.Tensor"]):
    """Returns tensors that are decoded each time that they are asked for; no two of them are tied.

    Attributes:
        tied: nothing.
    """

    tied: Mapping[str, str] = MappingProxyType({})

    def __init__(self, names: tuple[str, ...], decoded: Callable[[str], torch.Tensor]) -> None:
        """Takes the function that decodes the tensor of a name."""
        self._names, self._known, self._decoded = names, frozenset(names), decoded

    def __getitem__(self, name: str) -> torch.Tensor:
        """Returns one tensor."""
        if name not in self._known:
            raise KeyError(name)
        return self._decoded(name)

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
    return tensors.tied if isinstance(tensors, MappedTensors | DecodedTensors) else ties(tensors)
