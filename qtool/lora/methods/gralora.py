"""Builds the changes of GraLoRA: a product of low rank for each of k × k blocks of a weight.

Source: Jung et al., GraLoRA: Granular low-rank adaptation, https://arxiv.org/abs/2505.20355; and how
https://github.com/huggingface/peft stores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch

_BLOCKS = {"gralora_A", "gralora_B"}
_WHOLE = {"gralora_A_general", "gralora_B_general"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Granular:
    """Adds scale · (the blocks' products, and a product over all of the weight).

    The block of outputs j and inputs n is the product of the n-th share of the rank of B[j] with the j-th of A[n].

    Attributes:
        first: A: (k, inputs / k, rank).
        second: B: (k, rank, outputs / k).
        whole: the matrices of the product over all: (outputs, hybrid rank) and (hybrid rank, inputs); None without one.
        scale: the factor.
        rank: of blocks and whole together.
        inputs_first: whether the weight is stored with its inputs first.
    """

    first: torch.Tensor
    second: torch.Tensor
    whole: tuple[torch.Tensor, torch.Tensor] | None
    scale: float
    rank: int
    inputs_first: bool
    kind: str = "GraLoRA"
    additive: bool = True

    @property
    def by_rows(self) -> bool:
        """Whether rows are outputs."""
        return not self.inputs_first

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns rows of the sum."""
        if self.inputs_first:
            return self._outputs(weight.dtype, slice(0, weight.shape[1])).T.contiguous()
        return self._outputs(weight.dtype, rows)

    def _outputs(self, dtype: torch.dtype, rows: slice) -> torch.Tensor:
        import torch

        count, _, rank = self.first.shape
        length, share = self.second.shape[2], rank // count
        pieces = []
        for block in range(rows.start // length, -(-rows.stop // length)):
            inner = slice(max(rows.start - block * length, 0), min(rows.stop - block * length, length))
            second = self.second[block, :, inner].to(dtype).reshape(count, share, -1)
            first = self.first[:, :, block * share : (block + 1) * share].to(dtype)
            pieces.append(torch.einsum("nso,nis->oni", second, first).flatten(1))
        total = torch.cat(pieces)
        if self.whole is not None:
            total += self.whole[0][rows].to(dtype) @ self.whole[1].to(dtype)
        return total.mul_(self.scale)


def granular_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that GraLoRA makes.

    Raises:
        InputError: shapes do not agree with the base.
    """
    check_roles(module, _BLOCKS | (_WHOLE & set(module.parts) and _WHOLE), set(), base.source)
    first, second, shape = module.parts["gralora_A"], module.parts["gralora_B"], base.shape("weight")
    if (
        first.ndim != 3
        or second.ndim != 3
        or len(first) != len(second)
        or first.shape[2] != second.shape[1]
        or first.shape[2] % len(first)
    ):
        raise base.misfit("weight", f"gralora_A has the shape {tuple(first.shape)}, gralora_B {tuple(second.shape)}")
    made = (len(second) * second.shape[2], len(first) * first.shape[1])
    inputs_first = adapter.settings.fan_in_fan_out and shape == made[::-1]
    if shape != (made[::-1] if inputs_first else made):
        raise base.misfit("weight", f"the blocks make the shape {made}")
    rank, whole = first.shape[2], None
    if _WHOLE & set(module.parts):
        whole = module.parts["gralora_B_general"], module.parts["gralora_A_general"]
        if any(matrix.ndim != 2 for matrix in whole) or whole[0].shape != (made[0], len(whole[1])):
            raise base.misfit("weight", f"gralora_B_general has the shape {tuple(whole[0].shape)}")
        if whole[1].shape[1] != made[1]:
            raise base.misfit("weight", f"gralora_A_general has the shape {tuple(whole[1].shape)}")
        rank += len(whole[1])
    scale = adapter.scale_of(module, rank)
    change = Granular(first=first, second=second, whole=whole, scale=scale, rank=rank, inputs_first=inputs_first)
    return [base.change("weight", change)]
