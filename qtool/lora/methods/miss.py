"""Builds the changes of MiSS, whose one small matrix is shared by all pieces of a row.

Source: Kang et al., MiSS: Balancing LoRA performance and efficiency with simple shard sharing,
https://arxiv.org/abs/2409.15371; and how https://github.com/huggingface/peft stores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedShards:
    """Adds one trained piece of length r to every piece of that length of a row; the last one may be truncated.

    Attributes:
        shards: (r, outputs), or fewer columns, which repeat.
    """

    shards: torch.Tensor
    kind: str = "MiSS"
    scale: float | None = None
    additive: bool = True
    by_rows: bool = True

    @property
    def rank(self) -> int:
        """The length of a piece."""
        return int(self.shards.shape[0])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the pieces, repeated along the rows."""
        import torch

        inputs = weight.shape[1]
        places = torch.arange(rows.start, rows.stop) % self.shards.shape[1]
        pieces = self.shards[:, places].T.to(weight.dtype)
        return pieces.repeat(1, -(-inputs // self.rank))[:, :inputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAffine:
    """Changes each block of r × r to W + W·B + B, with one matrix B per row of blocks.

    Attributes:
        blocks: (outputs / r, r, r).
    """

    blocks: torch.Tensor
    kind: str = "MiSS"
    scale: float | None = None
    additive: bool = False
    by_rows: bool = True

    @property
    def rank(self) -> int:
        """The length of a block."""
        return int(self.blocks.shape[1])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns W·B + B."""
        import torch

        length = self.rank
        pieces = []
        for block in range(rows.start // length, -(-rows.stop // length)):
            first, last = max(block * length, rows.start), min((block + 1) * length, rows.stop)
            matrix = self.blocks[block].to(weight.dtype)
            part = weight[first - rows.start : last - rows.start]
            part = part.reshape(part.shape[0], -1, length)
            pieces.append((part @ matrix + matrix[first - block * length : last - block * length, None]).flatten(1))
        return torch.cat(pieces)


def shard_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that MiSS makes.

    Raises:
        InputError: shapes do not agree with the settings and the base.
    """
    check_roles(module, {"miss_block"}, set(), base.source)
    matrix, shape = module.parts["miss_block"], base.shape("weight")
    form = adapter.settings.details.form
    if form == "bat":
        length = matrix.shape[-1] if matrix.ndim == 3 else 1
        whole = len(shape) == 2 and shape[0] % length == 0 == shape[1] % length
        fits = whole and matrix.shape == (shape[0] // length, length, length)
    else:
        repeats = form == "mini" and matrix.ndim == 2 and shape[0] % matrix.shape[1] == 0
        fits = len(shape) == 2 == matrix.ndim and (matrix.shape[1] == shape[0] or repeats)
    if not fits:
        raise base.misfit("weight", f"miss_block has the shape {tuple(matrix.shape)}")
    return [base.change("weight", BlockAffine(blocks=matrix) if form == "bat" else SharedShards(shards=matrix))]
