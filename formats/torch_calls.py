"""Calls torch modules by the names of their inputs, whatever kind of program they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """Describes a parameter of a module's forward method.

    Attributes:
        name: its name.
        required: whether it has no default.
    """

    name: str
    required: bool


class StoredProgram(torch.nn.Module):
    """Is a program out of a file.

    Called as a module it takes its inputs one after the other, and returns its tensors in a flat tuple.

    Attributes:
        offered: what it takes.
        scripted: whether TorchScript runs it.
    """

    def __init__(
        self,
        program: torch.nn.Module,
        offered: Sequence[Parameter],
        call: Callable[[torch.nn.Module, Mapping[str, Any]], Any],
        *,
        scripted: bool,
    ) -> None:
        """Wraps ``program``; ``call`` runs it on tensors by the names of its parameters."""
        super().__init__()
        self.program = program
        self.offered = tuple(offered)
        self.scripted = scripted
        self._call = call
        self._given = tuple(parameter.name for parameter in offered if parameter.required)

    def giving(self, names: Sequence[str]) -> StoredProgram:
        """Returns the same program with ``names`` as what it is given, in this order."""
        same = StoredProgram(self.program, self.offered, self._call, scripted=self.scripted)
        same._given = tuple(names)
        return same

    def run(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Returns what the program itself gives, for tensors by the names of its parameters."""
        return self._call(self.program, tensors)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the program."""
        return tuple(tensors_in(self.run(dict(zip(self._given, inputs, strict=True)))))


def parameters(module: torch.nn.Module) -> tuple[Parameter, ...]:
    """Returns the parameters of the module's forward method that can be given by name."""
    if isinstance(module, StoredProgram):
        return module.offered
    return tuple(
        Parameter(name=parameter.name, required=parameter.default is parameter.empty)
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )


def call(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Returns what the module gives for tensors by the names of its parameters."""
    if isinstance(module, StoredProgram):
        return module.run(tensors)
    return module(**tensors)


def tensors_in(result: Any) -> list[torch.Tensor]:
    """Returns the tensors of a result in order, out of tuples and dictionaries."""
    return [value for value in pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]


def names_in(result: Any) -> tuple[str, ...]:
    """Returns a name for each tensor of a result that is a dictionary: its key; nothing for other results."""
    if not isinstance(result, Mapping):
        return ()
    names: list[str] = []
    for key, value in result.items():
        count = len(tensors_in(value))
        names += [str(key)] if count == 1 else [f"{key}.{number}" for number in range(count)]
    return tuple(names)
