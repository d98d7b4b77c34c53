"""Finds tensors that are one and the same in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def ties(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns, for each tensor that is another name of an earlier one, the name of the first.

    Two names are tied when they see the same memory in the same shape, strides and element type. Empty tensors
    own no memory and are never tied.
    """
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place in first:
            tied[name] = first[place]
        else:
            first[place] = name
    return tied
