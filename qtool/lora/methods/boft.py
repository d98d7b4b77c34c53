"""Builds the changes of BOFT, which rotates the inputs of a weight block by block and scales its outputs.

Source: Liu et al., Parameter-efficient orthogonal finetuning via butterfly factorization,
https://arxiv.org/abs/2311.06243, with one factor; and how https://github.com/huggingface/peft stores it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """Changes the weight to s · W · Qᵀ, with a block-diagonal Q.

    Attributes:
        blocks: (blocks, n, n): the rotations.
        factors: (rows,): s.
    """

    blocks: torch.Tensor
    factors: torch.Tensor
    kind: str = "BOFT"
    scale: float | None = None
    additive: bool = False
    by_rows: bool = True

    @property
    def rank(self) -> int:
        """The length of a block."""
        return int(self.blocks.shape[1])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the difference to the rotated weight."""
        import torch

        inputs = weight.reshape(weight.shape[0], *self.blocks.shape[:2])
        turned = torch.einsum("bij,obj->obi", self.blocks.to(weight.dtype), inputs).flatten(1)
        return turned.mul_(self.factors[rows, None].to(weight.dtype)).reshape(weight.shape) - weight


def turned_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that BOFT makes.

    Raises:
        InputError: there are several factors, or shapes do not agree with the base.
    """
    import torch

    check_roles(module, {"boft_R", "boft_s"}, set(), str(adapter.source))
    numbers, factors, shape = module.parts["boft_R"], module.parts["boft_s"], base.shape("weight")
    if numbers.ndim == 4 and len(numbers) > 1:
        raise InputError(
            f"{base.source} is BOFT with {len(numbers)} butterfly factors, and only one is supported",
            fix="merge it with the library that trained it",
        )
    if (
        numbers.ndim != 4
        or numbers.shape[2] != numbers.shape[3]
        or numbers.shape[1] * numbers.shape[2] != math.prod(shape[1:])
        or factors.numel() != shape[0]
    ):
        raise base.misfit("weight", f"boft_R has the shape {tuple(numbers.shape)}")
    data = numbers[0].to(torch.float64)
    skew = (data - data.transpose(1, 2)) / 2
    one = torch.eye(skew.shape[1], dtype=skew.dtype).expand_as(skew)
    blocks = torch.linalg.solve(one + skew, one - skew, left=False)
    return [base.change("weight", Turned(blocks=blocks, factors=factors.flatten()))]
