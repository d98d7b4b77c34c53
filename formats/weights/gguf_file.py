"""Reads ``.gguf`` files: what they say about themselves, and their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qtool.formats.mapped_tensors import DecodedTensors
from qtool.formats.weights.gguf_blocks import dequantized
from qtool.formats.weights.gguf_header import BF16, GgufEntry, read_gguf_header


@dataclass(frozen=True, slots=True)
class GgufContents:
    """Holds what a file holds.

    Attributes:
        fields: what it says about itself, by key; arrays are lists.
        tensors: by name, in the order of torch: the fastest axis is the last. Quantized ones are float32; each is
            read when it is asked for.
    """

    fields: Mapping[str, object]
    tensors: Mapping[str, torch.Tensor]


def read_gguf(path: Path) -> GgufContents:
    """Reads all but the tensors; nothing in such a file can be run.

    Asking for a tensor raises ``FormatError`` where its type is not known, or needs the package gguf.

    Raises:
        FormatError: it is damaged, or of another version or byte order.
    """
    header = read_gguf_header(path)
    entries = {entry.name: entry for entry in header.entries}

    def decoded(name: str) -> torch.Tensor:
        return _tensor(path, entries[name])

    return GgufContents(header.fields, DecodedTensors(tuple(entries), decoded))


def _tensor(path: Path, entry: GgufEntry) -> torch.Tensor:
    found = torch.from_numpy(dequantized(path, entry))
    return found.to(torch.bfloat16) if entry.kind == BF16 else found
