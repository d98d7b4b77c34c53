"""Builds the changes of RoAd: 2D rotations of pairs of outputs.

Source: Liao and Monz, 3-in-1: 2D rotary adaptation for efficient finetuning, efficient batching and composability,
https://arxiv.org/abs/2409.00119, equation 4; and how https://github.com/huggingface/peft stores it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch

# The number of values per output of each kind.
_SHARES = {"road_1": 0.5, "road_2": 1, "road_4": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Changes each row y of the weight, or number of the bias, to own · y + other · partner.

    Attributes:
        own: (rows,): the factor of a row itself.
        other: (rows,): that of its partner, half a group away; with its sign.
        group: the length of a group of rows.
        source: the whole parameter, once it is known.
    """

    own: torch.Tensor
    other: torch.Tensor
    group: int
    source: torch.Tensor | None = None
    kind: str = "RoAd"
    rank: int | None = None
    scale: float | None = None
    additive: bool = False

    @property
    def by_rows(self) -> bool:
        """Whether the partners of rows are known."""
        return self.source is not None

    def ready(self, weight: torch.Tensor) -> Paired:
        """Returns the change with the rows of the partners."""
        return replace(self, source=weight)

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the difference to the rotated rows."""
        import torch

        places, half = torch.arange(rows.start, rows.stop), self.group // 2
        partners = torch.where(places % self.group < half, places + half, places - half)
        spread = (-1, *(1,) * (weight.ndim - 1))
        own, other = (factors[rows].to(weight.dtype).reshape(spread) for factors in (self.own, self.other))
        whole = weight if self.source is None else self.source
        return weight * (own - 1) + other * whole[partners].to(weight.dtype)


def paired_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the changes that RoAd makes: of the weight, and of the bias.

    Raises:
        InputError: shapes do not agree with the settings and the base.
    """
    check_roles(module, {"road_theta", "road_alpha"}, set(), base.source)
    angles, scales = module.parts["road_theta"].double(), module.parts["road_alpha"].double()
    details, outputs = adapter.settings.details, base.shape("weight")[0]
    group = details.group
    share = _SHARES.get(details.form)
    if (
        share is None
        or group < 2
        or group % 2
        or outputs % group
        or len(base.shape("weight")) != 2
        or not angles.shape == scales.shape == (outputs * share,)
    ):
        raise base.misfit("weight", f"{details.form or 'road'}_theta has the shape {tuple(angles.shape)}")
    if share == 2:
        angles, scales = (values.reshape(-1, 2, group) for values in (angles, scales))
        own = (scales[:, 0] * angles[:, 0].cos()).flatten()
        other = (scales[:, 1] * angles[:, 1].sin()).flatten()
    else:
        if share < 1:
            angles, scales = (
                values.reshape(-1, group // 2).repeat_interleave(2, dim=0).flatten() for values in (angles, scales)
            )
        own, other = scales * angles.cos(), scales * angles.sin()
    signed = other.reshape(-1, 2, group // 2).clone()
    signed[:, 0].neg_()
    change = Paired(own=own, other=signed.flatten(), group=group)
    return [base.change(name, change) for name in ("weight", "bias") if base.has(name)]
