"""Builds the changes of HiRA: the Hadamard product of a weight with a low-rank product.

Source: Huang et al., HiRA: Parameter-efficient Hadamard high-rank adaptation, https://openreview.net/pdf?id=TwJrTz9cRS:
W' = W + W ⊙ (B·A); and how https://github.com/huggingface/peft stores it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.lora.methods.changes import LowRank
from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulated:
    """Adds W ⊙ product.

    Attributes:
        product: the factors less one.
    """

    product: LowRank
    kind: str = "HiRA"
    scale: float | None = None
    additive: bool = False
    by_rows: bool = True

    @property
    def rank(self) -> int:
        """The rank of the product."""
        return self.product.rank

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the weight times the product."""
        return self.product.delta(weight, rows).mul_(weight)


def modulated_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that HiRA makes.

    Raises:
        InputError: shapes do not agree with the base.
    """
    stem = "hira_embedding_" if any(role.startswith("hira_embedding_") for role in module.parts) else "hira_"
    check_roles(module, {f"{stem}A", f"{stem}B"}, set(), base.source)
    first, second, shape = module.parts[f"{stem}A"], module.parts[f"{stem}B"], base.shape("weight")
    if first.ndim < 2 or second.ndim < 2 or math.prod(second.shape[2:]) != 1 or len(first) != second.shape[1]:
        raise base.misfit("weight", f"hira_A has the shape {tuple(first.shape)}, hira_B {tuple(second.shape)}")
    left, right = second.flatten(1), first.flatten(1)
    made = (len(second), *first.shape[1:])
    # Embeddings hold one row for each input, as layers of transformers with the inputs first do.
    if stem == "hira_embedding_" or (adapter.settings.fan_in_fan_out and made[::-1] == shape):
        left, right, made = right.T, left.T, made[::-1]
    if made != shape:
        raise base.misfit("weight", f"the product of its matrices has the shape {made}")
    return [base.change("weight", Modulated(product=LowRank(left=left, right=right, scale=1.0)))]
