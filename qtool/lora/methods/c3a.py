"""Builds the changes of C3A: circulant blocks.

Source: Chen et al., Parameter-efficient fine-tuning via circular convolution, https://arxiv.org/abs/2407.19342;
and how https://github.com/huggingface/peft stores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Circulant:
    """Adds kernel[(j − i) mod b] / inputs at row i and column j of each block of b × b.

    Attributes:
        kernels: (outputs / b, inputs / b, b).
    """

    kernels: torch.Tensor
    kind: str = "C3A"
    rank: int | None = None
    additive: bool = True
    by_rows: bool = True

    @property
    def scale(self) -> float:
        """One over the number of inputs."""
        return 1 / (self.kernels.shape[1] * self.kernels.shape[2])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns rows of the blocks."""
        import torch

        length = self.kernels.shape[2]
        places = torch.arange(rows.start, rows.stop)
        shifts = (torch.arange(length) - (places % length)[:, None]) % length
        kernels = self.kernels[places // length].to(weight.dtype)
        shifts = shifts[:, None].expand(-1, kernels.shape[1], -1)
        return kernels.gather(2, shifts).mul_(self.scale).reshape(weight.shape)


def circulant_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that C3A makes.

    Raises:
        InputError: shapes do not agree with the base.
    """
    check_roles(module, {"c3a_kernel"}, set(), str(adapter.source))
    kernels, shape = module.parts["c3a_kernel"], base.shape("weight")
    made = tuple(count * kernels.shape[-1] for count in kernels.shape[:2]) if kernels.ndim == 3 else ()
    if made != shape:
        raise base.misfit("weight", f"c3a_kernel has the shape {tuple(kernels.shape)}")
    return [base.change("weight", Circulant(kernels=kernels))]
