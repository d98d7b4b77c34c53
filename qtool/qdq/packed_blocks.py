"""Packs block-quantized weights as onnxruntime's MatMulNBits stores them, and unpacks them.

Its weight is uint8, (outputs, blocks, bytes of a block), with the first input in the lowest bits of the first byte; its
zero points are packed alike over the blocks of an output
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits).
"""

from __future__ import annotations

import numpy as np

from qtool.formats.scratch import kept_aside
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import BlockWeight, Integers


def packed(integers: Integers, bits: int) -> Integers:
    """Packs the last axis, whose length fills whole bytes, or is filled up with zeros."""
    per_byte = 8 // bits
    if per_byte == 1:
        return integers
    missing = -integers.shape[-1] % per_byte
    filled = np.pad(integers, [(0, 0)] * (integers.ndim - 1) + [(0, missing)]) if missing else integers
    stored: Integers = filled[..., ::per_byte].copy()
    for place in range(1, per_byte):
        stored |= filled[..., place::per_byte] << np.uint8(place * bits)
    return kept_aside(stored)


def unpacked(stored: Integers, bits: int, count: int) -> Integers:
    """Inverts ``packed``: returns the first ``count`` integers of the last axis."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    spread = (stored[..., np.newaxis] >> shifts) & ((1 << bits) - 1)
    integers: Integers = spread.reshape(*stored.shape[:-1], -1)[..., :count].astype(np.uint8)
    return integers


def packed_weight(weight: BlockWeight) -> Integers:
    """Returns the integers as MatMulNBits reads them, uint8, (outputs, blocks, bytes of a block)."""
    outputs, inputs = weight.integers.shape
    length = weight.grid.length(inputs)
    filled = weight.integers
    if inputs % length:
        filled = kept_aside(np.pad(filled, [(0, 0), (0, -inputs % length)], constant_values=weight.grid.middle))
    return packed(filled.reshape(outputs, -1, length), weight.grid.bits)


def unpacked_weight(stored: Integers, grid: BlockGrid, inputs: int) -> Integers:
    """Inverts ``packed_weight``: returns the integers, uint8, (outputs, inputs)."""
    blocks = unpacked(stored, grid.bits, grid.length(inputs))
    return np.ascontiguousarray(blocks.reshape(len(stored), -1)[:, :inputs])
