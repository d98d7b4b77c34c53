"""Layers with packed integers in blocks: MatMulNBits and GatherBlockQuantized.

Packed bytes are unpacked; integers that are learned come as floats, (outputs, inputs). Activations stay float, also
where ``accuracy_level`` lets a kernel round them. Source of the forms:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from qtool.graph.unpacked_product import PACKED_DOMAIN, PACKED_DOMAINS
from qtool.learn.operators.calls import Call, Inputs, Operator, given, optional


def _unpacked(stored: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Returns the first ``count`` integers of the last axis, the first one in the lowest bits of the first byte."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    integers = (stored.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return integers.flatten(-2)[..., :count]


def _zero_points(zeros: torch.Tensor | None, bits: int, rows: int, blocks: int) -> torch.Tensor | float:
    """Returns zero points that broadcast over (rows, blocks, integers of a block)."""
    if zeros is None:
        return float(1 << (bits - 1))
    if zeros.dtype == torch.uint8 and zeros.numel() > 1:
        zeros = _unpacked(zeros.reshape(rows, -1), bits, blocks)
    return zeros.reshape((1, 1, 1) if zeros.numel() == 1 else (rows, blocks, 1))


def _floats(steps: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | float, length: int) -> torch.Tensor:
    """Returns (integers - zero point) · scale of rows of blocks; the last block may be shorter than the others."""
    rows, columns = steps.shape
    blocks = scales.shape[1]
    whole = functional.pad(steps.to(scales.dtype), (0, blocks * length - columns)).reshape(rows, blocks, length)
    if isinstance(zeros, torch.Tensor):
        zeros = zeros.to(scales)
    return ((whole - zeros) * scales.unsqueeze(-1)).reshape(rows, -1)[:, :columns]


def _product(call: Call, inputs: Inputs) -> torch.Tensor:
    if optional(inputs, 4) is not None:
        raise LookupError("weights in another order are not read")
    bits, length = call.integer("bits", 4), call.integer("block_size", 0)
    outputs, columns = call.integer("N", 0), call.integer("K", 0)
    stored, blocks = given(inputs, 1), -(-columns // length)
    if stored.dtype == torch.uint8:
        stored = _unpacked(stored.reshape(outputs, -1), bits, columns)
    scales = given(inputs, 2).reshape(outputs, blocks)
    weight = _floats(stored, scales, _zero_points(optional(inputs, 3), bits, outputs, blocks), length)
    return functional.linear(given(inputs, 0), weight.to(given(inputs, 0)), optional(inputs, 5))


def _rows(call: Call, inputs: Inputs) -> torch.Tensor:
    stored, indices, scales = given(inputs, 0), given(inputs, 1).long(), given(inputs, 2)
    if stored.dtype != torch.uint8 or call.integer("gather_axis", 0) or call.integer("quantize_axis", 1) not in (1, -1):
        raise LookupError("only rows of packed bytes are read")
    bits, length = call.integer("bits", 4), call.integer("block_size", 128)
    rows, blocks = scales.shape
    chosen = torch.where(indices < 0, indices + rows, indices).reshape(-1)
    zeros = optional(inputs, 3)
    if zeros is not None:
        zeros = zeros.reshape(rows, -1)[chosen.to(zeros.device)]
    integers = _unpacked(stored[chosen.to(stored.device)], bits, stored.shape[1] * 8 // bits)
    points = _zero_points(zeros, bits, len(chosen), blocks)
    floats = _floats(integers.to(scales.device), scales[chosen.to(scales.device)], points, length)
    return floats.reshape(*indices.shape, floats.shape[1])


PACKED_PRODUCTS: Mapping[str, Operator] = {
    f"{PACKED_DOMAIN}.GatherBlockQuantized": _rows,
    **{f"{domain}.MatMulNBits": _product for domain in PACKED_DOMAINS},
}
