"""Adds weighted changes to one tensor, with one rounding at the end, and measures what happened to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.changes import Change, Replaced

if TYPE_CHECKING:
    import torch

# Elements of float64 that are worked on at once, few enough for the caches of a core.
_BLOCK_ELEMENTS = 1 << 17
# Formulas that need all rows at once are computed in float32 above this size, or they would take gigabytes.
_LARGEST_EXACT_ELEMENTS = 1 << 26


@dataclass(frozen=True, slots=True)
class WeightedChange:
    """Is one change and how much of it is added."""

    change: Change
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedTensor:
    """Is a changed tensor, in the shape and type of the original.

    Attributes:
        tensor: its values.
        relative_change: the norm of what was added, over that of the original; infinite where that is zero.
        rounding_error: the norm of what the type cuts off at the end, over that of the exact sum.
    """

    tensor: torch.Tensor
    relative_change: float
    rounding_error: float


def merge_tensor(name: str, weight: torch.Tensor, changes: Sequence[WeightedChange]) -> MergedTensor:
    """Returns W + Σ wᵢ·ΔWᵢ, computed in float64 and rounded once to the type of W.

    Args:
        name: the tensor, for errors.
        weight: W; floats.
        changes: what is added.

    Raises:
        InputError: the sum holds what the type does not, or is no number.
    """
    import torch

    replaced = _replacement(changes)
    if replaced is not None and not weight.is_floating_point():
        # Counters, such as those of BatchNorm: nothing to measure.
        return MergedTensor(tensor=replaced.to(weight.dtype), relative_change=0.0, rounding_error=0.0)
    with torch.no_grad():
        by_rows = all(item.change.by_rows for item in changes)
        blocks = _blocks(weight) if by_rows else [slice(0, weight.shape[0])]
        merged = torch.empty_like(weight, memory_format=torch.contiguous_format)
        sums = [0.0, 0.0, 0.0, 0.0]
        for rows in blocks:
            _merge_block(weight, merged, rows, changes, sums)
    # What the type does not hold is infinitely far from the sum, or no number.
    if not all(math.isfinite(value) for value in sums):
        raise InputError(
            f"the merged {name} holds values that {str(weight.dtype).removeprefix('torch.')} does not",
            fix="check the scale of the adapter, or convert the base to float32 first",
        )
    original, added, exact, lost = (math.sqrt(value) for value in sums)
    return MergedTensor(
        tensor=merged,
        relative_change=added / original if original else (math.inf if added else 0.0),
        rounding_error=lost / exact if exact else 0.0,
    )


def total_delta(weight: torch.Tensor, changes: Sequence[WeightedChange]) -> torch.Tensor:
    """Returns Σ wᵢ·ΔWᵢ in float64, all of it at once."""
    import torch

    with torch.no_grad():
        original = weight.to(torch.float64)
        total = torch.zeros_like(original)
        for item in changes:
            total.add_(item.change.delta(original, slice(0, len(original))), alpha=item.weight)
    return total


def _replacement(changes: Sequence[WeightedChange]) -> torch.Tensor | None:
    """Returns the values that stand in for the whole tensor, where that is all that happens to it."""
    last = changes[-1].change
    return last.values if isinstance(last, Replaced) and last.indices is None else None


def _blocks(weight: torch.Tensor) -> list[slice]:
    rows = weight.shape[0]
    step = max(1, _BLOCK_ELEMENTS * rows // max(1, weight.numel()))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]


def _merge_block(
    weight: torch.Tensor, merged: torch.Tensor, rows: slice, changes: Sequence[WeightedChange], sums: list[float]
) -> None:
    import torch

    part = weight[rows]
    dtype = torch.float64 if part.numel() <= _LARGEST_EXACT_ELEMENTS else torch.float32
    original = part.to(dtype)
    total: torch.Tensor | None = None
    for item in changes:
        delta = item.change.delta(original, rows)
        delta = delta if item.weight == 1 else delta.mul_(item.weight)
        total = delta if total is None else total.add_(delta)
    if total is None:
        total = torch.zeros_like(original)
    exact = original + total
    merged[rows] = exact.to(weight.dtype)
    sums[0] += _squares(original)
    sums[1] += _squares(total)
    sums[2] += _squares(exact)
    sums[3] += _squares(exact.sub_(merged[rows].to(dtype)))


def _squares(values: torch.Tensor) -> float:
    flat = values.reshape(-1)
    return float(flat @ flat)
