"""Turns the bytes of tensors in ``.gguf`` files into numbers.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.formats.errors import FormatError
from qtool.formats.weights.gguf_header import BF16, BLOCK_TYPES, F16, F32, Q4_0, Q4_1, Q8_0, GgufEntry

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]

BLOCK = 32
# Types whose blocks are one scale, perhaps a smallest value, and integers.
AFFINE_TYPES = (Q4_0, Q4_1, Q8_0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineRows:
    """Rows of integers in blocks of 32, as they are stored.

    An element is scale · (integer - zero) + minimum of its block, in float32.

    Attributes:
        bits: 4 or 8.
        integers: uint8 (rows, columns).
        zero: the integer that stands for the number 0 where there is no minimum.
        scales: float16 (rows, blocks).
        minima: float16 (rows, blocks); None where there are none.
    """

    bits: int
    integers: Bytes
    zero: int
    scales: Halves
    minima: Halves | None

    def dequantized(self) -> Floats:
        """Returns the elements, float32 (rows, columns)."""
        blocks = self.integers.reshape(len(self.integers), -1, BLOCK).astype(np.float32) - np.float32(self.zero)
        blocks *= self.scales.astype(np.float32)[:, :, np.newaxis]
        if self.minima is not None:
            blocks += self.minima.astype(np.float32)[:, :, np.newaxis]
        return blocks.reshape(self.integers.shape)


def stored_bytes(path: Path, entry: GgufEntry) -> Bytes:
    """Returns the bytes of one tensor, which stay in the file until they are used.

    Raises:
        FormatError: its type is not known.
    """
    if entry.nbytes is None:
        raise FormatError(
            f"'{entry.name}' in {path} has the GGUF {entry.type_name}, which is not known",
            fix="convert it with --outtype f16",
        )
    if not entry.nbytes:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r", offset=entry.begin, shape=(entry.nbytes,))


def affine_rows(path: Path, entry: GgufEntry) -> AffineRows:
    """Returns a tensor of one of the ``AFFINE_TYPES``, its leading axes as one."""
    block = BLOCK_TYPES[entry.kind]
    columns = entry.shape[-1]
    stored = stored_bytes(path, entry).reshape(-1, columns // block.elements, block.nbytes)
    scales = _halves(stored[..., :2])
    if entry.kind == Q8_0:
        # The sign bit turns two's complement into integers above zero point 128.
        integers = stored[..., 2:] ^ np.uint8(128)
        return AffineRows(bits=8, integers=integers.reshape(-1, columns), zero=128, scales=scales, minima=None)
    minima = _halves(stored[..., 2:4]) if entry.kind == Q4_1 else None
    pairs = stored[..., 4 if entry.kind == Q4_1 else 2 :]
    # The low halves of the bytes come first, then the high ones.
    integers = np.concatenate([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=-1)
    zero = 0 if entry.kind == Q4_1 else 8
    return AffineRows(bits=4, integers=integers.reshape(-1, columns), zero=zero, scales=scales, minima=minima)


def _halves(stored: Bytes) -> Halves:
    return np.ascontiguousarray(stored).view("<f2")[..., 0].astype(np.float16)


def dequantized(path: Path, entry: GgufEntry) -> npt.NDArray[Any]:
    """Returns a tensor as numbers: float32, or float16 where it is stored so; bfloat16 becomes float32.

    Raises:
        FormatError: its type is not known, or needs the package gguf, which is not installed.
    """
    stored = stored_bytes(path, entry)
    if entry.kind == F32:
        return np.array(stored).view("<f4").reshape(entry.shape)
    if entry.kind == F16:
        return np.array(stored).view("<f2").reshape(entry.shape)
    if entry.kind == BF16:
        return (np.array(stored).view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(entry.shape)
    if not stored.size:
        return np.zeros(entry.shape, np.float32)
    if entry.kind in AFFINE_TYPES:
        return affine_rows(path, entry).dequantized().reshape(entry.shape)
    return _by_library(stored, path, entry)


def _by_library(stored: Bytes, path: Path, entry: GgufEntry) -> Floats:
    try:
        import gguf
    except ImportError as error:
        raise FormatError(
            f"'{entry.name}' in {path} is {entry.type_name}, which needs the package gguf, not installed here",
            fix="install the extra: pip install 'qtool-onnx[llm]'",
        ) from error
    block = BLOCK_TYPES[entry.kind]
    rows = np.array(stored).reshape(-1, entry.shape[-1] // block.elements * block.nbytes)
    try:
        found = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(entry.kind))
    except (NotImplementedError, ValueError) as error:
        raise FormatError(
            f"the package gguf does not read {entry.type_name}, as '{entry.name}' in {path} is stored",
            fix="install a newer gguf, or convert the model with --outtype f16",
        ) from error
    return np.asarray(found, np.float32).reshape(entry.shape)
