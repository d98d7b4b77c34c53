"""Finds the rows of a GGUF model in weights that were made from it, by their values.

Exporters give tensors other names, turn them, put several into one and change the order of rows; the rows themselves
stay as they are, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qtool.formats.weights.gguf_blocks import AFFINE_TYPES, AffineRows, affine_rows
from qtool.formats.weights.gguf_header import GgufEntry

Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

# Enough for the largest temporary array to stay small beside a table.
_HASHED_ROWS = 1024


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one length.

    Attributes:
        hashes: of the dequantized rows, sorted.
        entries: the tensor of each.
        places: its row in the tensor.
    """

    hashes: Hashes
    entries: Places
    places: Places


class GgufRows:
    """The quantized rows of one file."""

    def __init__(self, path: Path, entries: Sequence[GgufEntry]) -> None:
        """Looks at every tensor that is stored in blocks of 32; one at a time is in memory."""
        self._entries = [entry for entry in entries if entry.kind in AFFINE_TYPES and len(entry.shape) == 2]
        # Projections of one layer follow each other.
        self._read = lru_cache(maxsize=1)(lambda place: affine_rows(path, self._entries[place]))
        found: dict[int, list[tuple[Hashes, int]]] = {}
        for place, entry in enumerate(self._entries):
            found.setdefault(entry.shape[1], []).append((_hashes(self._read(place).dequantized()), place))
        self._rows = {columns: _sorted(parts) for columns, parts in found.items()}

    def matching(self, weight: Floats) -> AffineRows | None:
        """Returns the stored form of ``weight``, float32 (rows, columns); None where the file does not have it so."""
        known = self._rows.get(weight.shape[1])
        if known is None:
            return None
        hashes = _hashes(weight)
        at = np.minimum(np.searchsorted(known.hashes, hashes), len(known.hashes) - 1)
        if not np.array_equal(known.hashes[at], hashes):
            return None
        entries, places = known.entries[at], known.places[at]
        kinds = {self._entries[int(place)].kind for place in np.unique(entries)}
        if len(kinds) != 1:
            return None
        rows = self._gathered(entries, places)
        return rows if np.array_equal(rows.dequantized(), weight) else None

    def _gathered(self, entries: Places, places: Places) -> AffineRows:
        """Returns the rows ``places`` of the tensors ``entries``, which are of one type."""
        parts = []
        order = np.argsort(entries, kind="stable")
        for entry in np.unique(entries):
            stored, wanted = self._read(int(entry)), places[order][entries[order] == entry]
            minima = None if stored.minima is None else stored.minima[wanted]
            parts.append((stored.integers[wanted], stored.scales[wanted], minima))
        back = np.argsort(order, kind="stable")
        first = self._read(int(entries[0]))
        return AffineRows(
            bits=first.bits,
            zero=first.zero,
            integers=np.concatenate([integers for integers, _, _ in parts])[back],
            scales=np.concatenate([scales for _, scales, _ in parts])[back],
            minima=None
            if first.minima is None
            else np.concatenate([minima for _, _, minima in parts if minima is not None])[back],
        )


def _sorted(parts: list[tuple[Hashes, int]]) -> _Rows:
    hashes = np.concatenate([found for found, _ in parts])
    entries = np.concatenate([np.full(len(found), place, np.int64) for found, place in parts])
    places = np.concatenate([np.arange(len(found), dtype=np.int64) for found, _ in parts])
    order = np.argsort(hashes, kind="stable")
    return _Rows(hashes[order], entries[order], places[order])


def _hashes(rows: Floats) -> Hashes:
    """Returns a number for each row; rows that differ have different ones, but for one in 2^64."""
    factors = np.random.default_rng(0).integers(0, 2**64, rows.shape[1], dtype=np.uint64) | np.uint64(1)
    found = [
        # Both zeros are one number.
        ((rows[begin : begin + _HASHED_ROWS] + np.float32(0)).view(np.uint32) * factors).sum(axis=1, dtype=np.uint64)
        for begin in range(0, len(rows), _HASHED_ROWS)
    ]
    return np.concatenate(found)
