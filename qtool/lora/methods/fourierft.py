"""Builds the changes of FourierFT: a few frequencies of a weight.

Source: Gao et al., Parameter-efficient fine-tuning with discrete Fourier transform, https://arxiv.org/abs/2405.03003;
and how https://github.com/huggingface/peft stores it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.methods.shira_waveft import drawn_places
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequencies:
    """Adds scale · Re of the inverse transform in two dimensions of a table with few numbers.

    Row p is the inverse transform of Σ c · exp(2πi·u·p / rows), gathered by the columns v of the numbers c at (u, v).

    Attributes:
        down: (numbers,): u.
        right: (numbers,): v.
        values: (numbers,): c.
        rows: of the table.
        scale: the factor.
    """

    down: torch.Tensor
    right: torch.Tensor
    values: torch.Tensor
    rows: int
    scale: float
    kind: str = "FourierFT"
    rank: int | None = None
    additive: bool = True
    by_rows: bool = True

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns rows of the transform."""
        import torch

        # Whole turns are removed in integers, so that the angle stays precise.
        turns = torch.arange(rows.start, rows.stop)[:, None] * self.down % self.rows
        waves = torch.polar(self.values.expand(turns.shape), turns.to(torch.float64) * (2 * math.pi / self.rows))
        table = torch.zeros(weight.shape, dtype=torch.complex128).index_add_(1, self.right, waves)
        product: torch.Tensor = torch.fft.ifft(table, dim=1).real * (self.scale / self.rows)
        return product.to(weight.dtype)


def frequency_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that FourierFT makes.

    Raises:
        InputError: there are more frequencies than the weight has numbers.
    """
    import torch

    check_roles(module, {"fourierft_spectrum"}, set(), base.source)
    down, right, rows, columns = drawn_places(module, "fourierft_spectrum", base, adapter)
    if adapter.settings.fan_in_fan_out:
        down, right, rows = right, down, columns
    values = module.parts["fourierft_spectrum"].to(torch.float64)
    scale = adapter.settings.details.scaling
    return [base.change("weight", Frequencies(down=down, right=right, values=values, rows=rows, scale=scale))]
