"""Builds the changes of parameters trained by name (``target_parameters``), such as the stacked weights of experts.

Source: https://huggingface.co/docs/peft/package_reference/lora: ``target_parameters``. PEFT nests the matrices of
several parameters of one module in the order in which the module created them, which no file records; here they are
told apart by their shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.methods.changes import Change, LowRank
from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedLowRank:
    """Adds scale · Bₑ @ Aₑ to the weight of each expert e.

    Attributes:
        first: A, (experts, rank, inputs).
        second: B, (experts, outputs, rank).
        inputs_first: whether the weights are stored as (experts, inputs, outputs).
        scale: the factor.
    """

    first: torch.Tensor
    second: torch.Tensor
    inputs_first: bool
    scale: float
    kind: str = "LoRA"
    additive: bool = True
    by_rows: bool = True

    @property
    def rank(self) -> int:
        """The rank of each expert's product."""
        return int(self.first.shape[1])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the products of some experts."""
        product = self.second[rows].to(weight.dtype) @ self.first[rows].to(weight.dtype)
        product.mul_(self.scale)
        return product.transpose(1, 2) if self.inputs_first else product


def parameter_changes(modules: Sequence[AdapterModule], base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the changes of all parameters of one module that are trained by name.

    Raises:
        InputError: matrices are missing or fit no parameter, or their assignment is ambiguous.
    """
    for module in modules:
        check_roles(module, {"lora_A", "lora_B"}, set(), base.source)
    names = [name for name in adapter.settings.parameters_of(modules[0].path) if base.has(name)]
    fitting = []
    for order in permutations(names, len(modules)):
        changes = [_change(module, base, name, adapter) for module, name in zip(modules, order, strict=True)]
        if all(change is not None for change in changes):
            fitting.append([base.change(name, change) for name, change in zip(order, changes, strict=True) if change])
    if len(fitting) == 1:
        return fitting[0]
    raise InputError(
        f"the matrices of {modules[0].path} in {base.source} fit "
        + (f"its parameters {', '.join(names)} in more than one way" if fitting else "none of its parameters"),
        fix="merge it with PEFT, which knows the module" if fitting else "name the base that it was trained on",
    )


def _change(module: AdapterModule, base: BaseModule, name: str, adapter: Adapter) -> Change | None:
    """Returns None where the matrices do not fit the parameter."""
    first, second, shape = module.parts["lora_A"], module.parts["lora_B"], base.shape(name)
    rank = adapter.settings.rank_of(f"{module.path}.{name}")
    experts = shape[0] if len(shape) == 3 else 1
    if rank is None or first.shape[0] != rank * experts or second.shape[1] != rank * experts:
        return None
    scale = adapter.settings.scale_of(f"{module.path}.{name}", rank)
    inputs, outputs = first.shape[1], second.shape[0]
    if len(shape) == 2:
        return LowRank(left=second, right=first, scale=scale) if shape == (outputs, inputs) else None
    if shape[1:] not in ((outputs, inputs), (inputs, outputs)):
        return None
    if inputs == outputs:
        raise InputError(
            f"{base.path}.{name} is square, and nothing in {base.source} tells its inputs from its outputs",
            fix="merge it with PEFT, which knows the module",
        )
    return StackedLowRank(
        first=first.reshape(experts, rank, inputs),
        second=second.reshape(outputs, rank, experts).permute(2, 0, 1),
        inputs_first=shape[1:] == (inputs, outputs),
        scale=scale,
    )
