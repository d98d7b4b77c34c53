"""Finds tied tensors, which share memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qtool.formats.odd_tensors import oddity

if TYPE_CHECKING:
    import torch


def ties(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns, for each name of a tied tensor but the first, the first one.

    Two names are tied when they see the same memory in the same shape, strides and element type. Empty tensors, and
    those that are sparse, nested or without values, own no such memory and are never tied.
    """
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        if oddity(tensor) is not None or tensor.numel() == 0:
            continue
        view = (tensor.is_conj(), tensor.is_neg())
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), view)
        if place in first:
            tied[name] = first[place]
        else:
            first[place] = name
    return tied
