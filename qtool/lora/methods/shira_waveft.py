"""Builds the changes of SHiRA and WaveFT, which add sparse values, or sparse wavelet coefficients, to a weight.

Sources: Bhardwaj et al., Sparse high rank adapters, https://arxiv.org/abs/2406.13175; Bilican et al., WaveFT,
https://arxiv.org/abs/2505.12532 (with the wavelet of Haar); and how https://github.com/huggingface/peft stores them.
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

_HAAR = ("db1", "haar")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scattered:
    """Adds sparse values; those with the same index add up.

    Attributes:
        rows: (numbers,): in ascending order.
        columns: (numbers,).
        values: (numbers,).
        kind: its name, for display.
        scale: the factor.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    kind: str
    scale: float
    rank: int | None = None
    additive: bool = True
    by_rows: bool = True

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns rows of the numbers, with zeros between them."""
        import torch

        first, last = torch.searchsorted(self.rows, torch.tensor([rows.start, rows.stop])).tolist()
        places = (self.rows[first:last] - rows.start, self.columns[first:last])
        total = torch.zeros_like(weight)
        return total.index_put_(places, self.values[first:last].to(weight.dtype), accumulate=True).mul_(self.scale)


def sparse_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that SHiRA makes.

    Raises:
        InputError: shapes or places do not agree with the base.
    """
    import torch

    check_roles(module, {"shira_weight", "shira_indices"}, set(), base.source)
    values, places, shape = module.parts["shira_weight"], module.parts["shira_indices"], base.shape("weight")
    if values.ndim != 1 or len(shape) != 2 or places.shape != (2, len(values)):
        raise base.misfit("weight", f"shira_indices has the shape {tuple(places.shape)}")
    # Where PEFT runs on Windows, it saves them as floats.
    places = places.to(torch.int64)
    if int(places.min()) < 0 or bool((places.max(dim=1).values >= torch.tensor(shape)).any()):
        raise base.misfit("weight", "shira_indices are out of range")
    return [base.change("weight", _sorted(places[0], places[1], values, adapter, 1.0))]


def wave_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that WaveFT makes.

    Raises:
        InputError: it uses another wavelet than Haar's, or has more numbers than the weight.
    """
    import torch

    check_roles(module, {"waveft_spectrum"}, set(), base.source)
    details, values = adapter.settings.details, module.parts["waveft_spectrum"].to(torch.float64)
    rows, columns, outputs, inputs = drawn_places(module, "waveft_spectrum", base, adapter)
    if details.wavelet is not None:
        if details.wavelet not in _HAAR:
            raise InputError(
                f"{base.source} is WaveFT with the wavelet {details.wavelet}; only that of Haar (db1) is supported",
                fix="merge it with the library that trained it",
            )
        rows, columns, values = _waves(rows, columns, values, outputs, inputs)
    if adapter.settings.fan_in_fan_out:
        rows, columns = columns, rows
    return [base.change("weight", _sorted(rows, columns, values, adapter, details.scaling))]


def drawn_places(
    module: AdapterModule, role: str, base: BaseModule, adapter: Adapter
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Draws the rows and columns of numbers from the adapter's seed, as PEFT does, which does not save them.

    Returns:
        Rows and columns, and how many outputs and inputs there are.

    Raises:
        InputError: there are more numbers than places.
    """
    import torch

    shape, numbers = base.shape("weight"), module.parts[role]
    if len(shape) != 2 or numbers.ndim != 1 or len(numbers) > math.prod(shape):
        raise base.misfit("weight", f"{role} has the shape {tuple(numbers.shape)}")
    outputs, inputs = shape[::-1] if adapter.settings.fan_in_fan_out else shape
    generator = torch.Generator().manual_seed(adapter.settings.details.seed)
    places = torch.randperm(outputs * inputs, generator=generator)[: len(numbers)]
    return places // inputs, places % inputs, outputs, inputs


def _waves(
    rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, outputs: int, inputs: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inverts the Haar transform: each coefficient adds ± 1/2 to two by two entries.

    The four bands are the quarters of a table with even lengths, differences along rows at its right, those along
    columns at its bottom; entries outside the weight are dropped.
    """
    import torch

    half_rows, half_columns = (outputs + 1) // 2, (inputs + 1) // 2
    found = []
    for down in (0, 1):
        for right in (0, 1):
            signs = torch.where((columns >= half_columns) & (down == 1), -0.5, 0.5).to(values.dtype)
            signs = torch.where((rows >= half_rows) & (right == 1), -signs, signs)
            found.append((2 * (rows % half_rows) + down, 2 * (columns % half_columns) + right, values * signs))
    all_rows, all_columns, all_values = (torch.cat(parts) for parts in zip(*found, strict=True))
    inside = (all_rows < outputs) & (all_columns < inputs)
    return all_rows[inside], all_columns[inside], all_values[inside]


def _sorted(
    rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, adapter: Adapter, scale: float
) -> Scattered:
    order = rows.argsort(stable=True)
    return Scattered(
        rows=rows[order].contiguous(),
        columns=columns[order],
        values=values[order],
        kind=adapter.settings.kind,
        scale=scale,
    )
