"""Adds weighted changes to one tensor, with one rounding at the end, and measures the result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.methods.changes import Change, Preparable, Replaced, row_blocks

if TYPE_CHECKING:
    import torch

# Formulas that need all rows at once are computed in float32 above this size; float64 would take gigabytes.
_LARGEST_EXACT_ELEMENTS = 1 << 26


@dataclass(frozen=True, slots=True)
class WeightedChange:
    """One change and its weight."""

    change: Change
    weight: float


class TensorMerge:
    """Merges changes into one tensor, W + Σ wᵢ·ΔWᵢ, a few rows at a time.

    Attributes:
        relative_change: the norm of the change relative to that of the original; infinite where that is zero.
        rounding_error: the norm of the final rounding relative to that of the exact sum.
        growth: the norm of the exact sum relative to that of the original.
    """

    def __init__(self, name: str, weight: torch.Tensor, changes: Sequence[WeightedChange]) -> None:
        """Takes the tensor, which holds floats or is replaced as a whole, and its changes.

        Args:
            name: the tensor, for errors.
            weight: W.
            changes: the changes to add.
        """
        self.relative_change = self.rounding_error = 0.0
        self.growth = 1.0
        self._name = name
        self._weight = weight
        self._changes = changes

    def rows(self) -> Iterator[torch.Tensor]:
        """Yields the rows of the sum, in blocks, computed in float64 and rounded once to the type of W.

        The figures are available once it is exhausted.

        Raises:
            InputError: the sum does not fit the type, or is not finite.
        """
        import torch

        weight, replaced = self._weight, _replacement(self._changes)
        if replaced is not None and (not weight.is_floating_point() or weight.ndim == 0):
            # Counters, such as those of BatchNorm: nothing to measure.
            yield replaced.to(weight.dtype)
            return
        with torch.no_grad():
            changes = [_ready(item, weight) for item in self._changes]
            by_rows = all(item.change.by_rows for item in changes)
            sums = [0.0, 0.0, 0.0, 0.0]
            for rows in row_blocks(weight) if by_rows else [slice(0, weight.shape[0])]:
                yield _merged_block(weight, rows, changes, sums)
        # Values beyond the type's range are infinite after rounding, or NaN.
        if not all(math.isfinite(value) for value in sums):
            raise InputError(
                f"the merged {self._name} has values out of the range of {str(weight.dtype).removeprefix('torch.')}",
                fix="check the scale of the adapter, or convert the base to float32 first",
            )
        original, added, exact, lost = (math.sqrt(value) for value in sums)
        self.relative_change = added / original if original else (math.inf if added else 0.0)
        self.rounding_error = lost / exact if exact else 0.0
        self.growth = exact / original if original else 1.0


def _ready(item: WeightedChange, weight: torch.Tensor) -> WeightedChange:
    if not isinstance(item.change, Preparable):
        return item
    return WeightedChange(item.change.ready(weight), item.weight)


def total_delta(weight: torch.Tensor, changes: Sequence[WeightedChange]) -> torch.Tensor:
    """Returns Σ wᵢ·ΔWᵢ in float64, all of it at once."""
    import torch

    with torch.no_grad():
        original = weight.to(torch.float64)
        total = torch.zeros_like(original)
        for item in changes:
            total.add_(item.change.delta(original, slice(0, len(original))), alpha=item.weight)
    return total


def delta_blocks(weight: torch.Tensor, changes: Sequence[Change]) -> Iterator[torch.Tensor]:
    """Yields ΣΔWᵢ in float64, a few rows at a time, or all at once where a formula needs them all."""
    import torch

    with torch.no_grad():
        ready = [change.ready(weight) if isinstance(change, Preparable) else change for change in changes]
        by_rows = all(change.by_rows for change in ready)
        for rows in row_blocks(weight) if by_rows else [slice(0, weight.shape[0])]:
            original = weight[rows].to(torch.float64)
            total = torch.zeros_like(original)
            for change in ready:
                total.add_(change.delta(original, rows))
            yield total


def _replacement(changes: Sequence[WeightedChange]) -> torch.Tensor | None:
    """Returns the values that replace the whole tensor, where nothing else changes it."""
    last = changes[-1].change
    return last.values if isinstance(last, Replaced) and last.indices is None else None


def _merged_block(
    weight: torch.Tensor, rows: slice, changes: Sequence[WeightedChange], sums: list[float]
) -> torch.Tensor:
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
    merged = exact.to(weight.dtype)
    sums[0] += _squares(original)
    sums[1] += _squares(total)
    sums[2] += _squares(exact)
    sums[3] += _squares(exact.sub_(merged.to(dtype)))
    return merged


def _squares(values: torch.Tensor) -> float:
    flat = values.reshape(-1)
    return float(flat @ flat)
