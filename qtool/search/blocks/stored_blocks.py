"""Keeps integers of weights in files until they are needed: several methods round every weight of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from qtool.qdq.packed_blocks import packed, unpacked
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import BlockWeight


class StoredBlocks(Mapping[str, BlockWeight]):
    """Weights by name, which are read from files of a folder each time."""

    def __init__(self, folder: Path) -> None:
        """Takes an existing folder, whose files it names by itself."""
        self._folder = folder
        self._kept: dict[str, tuple[Path, BlockGrid, int]] = {}

    def add(self, name: str, weight: BlockWeight) -> None:
        """Writes a weight; one of the same name is forgotten."""
        path = self._folder / f"{len(list(self._folder.iterdir()))}.npz"
        integers = packed(weight.integers, weight.grid.bits)
        np.savez(path, integers=integers, scales=weight.scales, zero_points=weight.zero_points)
        self._kept[name] = (path, weight.grid, weight.integers.shape[1])

    def share(self, name: str, other: StoredBlocks) -> None:
        """Takes a weight over that ``other`` has written."""
        self._kept[name] = other._kept[name]

    def __getitem__(self, name: str) -> BlockWeight:
        path, grid, inputs = self._kept[name]
        with np.load(path) as found:
            return BlockWeight(
                integers=unpacked(found["integers"], grid.bits, inputs),
                scales=found["scales"],
                zero_points=found["zero_points"],
                grid=grid,
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
