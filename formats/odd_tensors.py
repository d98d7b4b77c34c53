"""Describes tensors without plain strided memory, which formats cannot store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def oddity(tensor: torch.Tensor) -> str | None:
    """Returns what is special about a tensor, in words; None for a plain strided one."""
    import torch

    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return f"quantized by torch ({str(tensor.dtype).removeprefix('torch.')})"
    return None
