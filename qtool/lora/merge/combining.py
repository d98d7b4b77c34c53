"""Combines the changes of several adapters by TIES, DARE or SVD.

Sources: Yadav et al., TIES-Merging, https://arxiv.org/abs/2306.01708; Yu et al., DARE,
https://arxiv.org/abs/2311.03099. Both are applied to the whole changes, not to their small matrices.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from qtool.errors import InputError

if TYPE_CHECKING:
    import torch

    from qtool.lora.merge.tensor_merge import WeightedChange


class Method(StrEnum):
    """A method to combine changes.

    TIES keeps the largest entries of each change, elects a sign for each entry of the weight, and takes the mean of
    those that agree. DARE drops entries at random and scales the others up. SVD takes the best approximation of low
    rank to the sum.
    """

    TIES = "ties"
    DARE = "dare"
    SVD = "svd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """How changes are combined.

    Attributes:
        method: the method.
        density: of TIES and DARE: the share of entries that is kept.
        rank: of SVD: the rank that is kept; None for the largest of the adapters.
        seed: of DARE.
    """

    method: Method
    density: float = 0.5
    rank: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """Adds the combination of several changes.

    Attributes:
        name: the weight, which determines DARE's choice of entries.
        changes: the changes to combine.
        combination: the method.
    """

    name: str
    changes: tuple[WeightedChange, ...]
    combination: Combination
    scale: float | None = None
    additive: bool = True
    by_rows: bool = False

    @property
    def kind(self) -> str:
        """The method and how many changes it combines."""
        return f"{self.combination.method} of {len(self.changes)}"

    @property
    def rank(self) -> int | None:
        """The rank that SVD keeps."""
        if self.combination.method is not Method.SVD:
            return None
        ranks = [item.change.rank for item in self.changes if item.change.rank is not None]
        return self.combination.rank or max(ranks, default=None)

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the combined change."""
        import torch

        parts = torch.stack([item.change.delta(weight, rows) for item in self.changes])
        weights = torch.tensor([item.weight for item in self.changes], dtype=weight.dtype)
        weights = weights.reshape(-1, *(1,) * weight.ndim)
        match self.combination.method:
            case Method.TIES:
                return _ties(parts, weights, self.combination.density)
            case Method.DARE:
                drawn: torch.Tensor = (self._kept_at_random(parts) * weights).sum(0)
                return drawn
            case Method.SVD:
                return _of_rank((parts * weights).sum(0), self.rank)

    def _kept_at_random(self, parts: torch.Tensor) -> torch.Tensor:
        import torch

        generator = torch.Generator().manual_seed(self.combination.seed ^ zlib.crc32(self.name.encode()))
        density = self.combination.density
        kept = torch.rand(parts.shape, generator=generator) < density
        return torch.where(kept, parts / density, torch.zeros((), dtype=parts.dtype))


def _ties(parts: torch.Tensor, weights: torch.Tensor, density: float) -> torch.Tensor:
    import torch

    trimmed = torch.zeros_like(parts)
    count = max(1, int(density * parts[0].numel()))
    for part, target in zip(parts, trimmed, strict=True):
        largest = part.abs().reshape(-1).topk(count).indices
        target.view(-1)[largest] = part.reshape(-1)[largest]
    # The adapters' weights do not influence the election, as in the paper, where they are one factor for all.
    elected = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0).to(parts.dtype)
    agree = trimmed.sign() == elected
    mean: torch.Tensor = (trimmed * weights * agree).sum(0) / agree.sum(0).clamp(min=1)
    return mean


def _of_rank(total: torch.Tensor, rank: int | None) -> torch.Tensor:
    import torch

    if rank is None or total.ndim < 2:
        return total
    left, values, right = torch.linalg.svd(total.flatten(1), full_matrices=False)
    kept = min(rank, len(values))
    nearest: torch.Tensor = (left[:, :kept] * values[:kept]) @ right[:kept]
    return nearest.reshape(total.shape)


def combined_changes(
    changes: Mapping[str, Sequence[WeightedChange]], combination: Combination
) -> dict[str, tuple[WeightedChange, ...]]:
    """Replaces several changes of a weight by one combined change.

    Raises:
        InputError: a change depends on the weight, so that it cannot be combined in advance.
    """
    from qtool.lora.merge.tensor_merge import WeightedChange

    for name, steps in changes.items():
        dependent = [step for step in steps if not step.change.additive]
        if dependent:
            raise InputError(
                f"{name} is changed by {dependent[0].change.kind}, which {combination.method} cannot combine",
                fix="leave that module out with --exclude, or that adapter",
            )
    return {
        name: (WeightedChange(Combined(name=name, changes=tuple(steps), combination=combination), 1.0),)
        for name, steps in changes.items()
    }
