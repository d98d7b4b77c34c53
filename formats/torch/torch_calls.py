"""Calls torch modules, exported and scripted programs by the names of their inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_LONGEST_VALUE = 40


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
    """A program out of a file.

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


class Called(StoredProgram):
    """A module behind a call whose inputs have names that its own do not, or that gives more than tensors."""

    def __init__(self, module: torch.nn.Module, offered: Sequence[Parameter], *, by_name: bool) -> None:
        """Wraps ``module``; ``by_name`` tells whether it takes keywords, and not only positions."""
        super().__init__(module, offered, _with_keywords if by_name else self._in_order, scripted=False)

    def _in_order(self, module: torch.nn.Module, tensors: Mapping[str, Any]) -> Any:
        names = [parameter.name for parameter in self.offered][: len(tensors)]
        if set(names) != set(tensors):
            raise TypeError(f"inputs go by their places here, and those before {names[-1]} are needed, too")
        return module(*(tensors[name] for name in names))

    def giving(self, names: Sequence[str]) -> Called:
        """Returns the same module with ``names`` as what it is given, in this order."""
        same = Called(self.program, self.offered, by_name=self._call is _with_keywords)
        same._given = tuple(names)
        return same


def _with_keywords(module: torch.nn.Module, tensors: Mapping[str, Any]) -> Any:
    return module(**tensors)


def looked_through(module: torch.nn.Module) -> torch.nn.Module:
    """Returns a module that knows the names of its inputs where its only child does, and itself passes all on."""
    by_name, inner = True, module
    if isinstance(module, StoredProgram):
        return module
    while (kinds := _only_passes_on(inner)) is not None and len(children := list(inner.children())) == 1:
        by_name = by_name and inspect.Parameter.VAR_KEYWORD in kinds
        inner = children[0]
    if inner is module:
        return module
    if by_name:
        return Called(module, parameters(inner), by_name=True)
    places = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return Called(module, parameters(inner, places), by_name=False)


def with_tensors_only(module: torch.nn.Module) -> torch.nn.Module:
    """Returns the module as one that gives nothing but tensors, in a flat tuple: torch exports no plain numbers."""
    return module if isinstance(module, StoredProgram) else Called(module, parameters(module), by_name=True)


def passes_on(module: torch.nn.Module) -> bool:
    """Returns whether the module's forward method takes nothing but ``*args`` and ``**kwargs``."""
    return not isinstance(module, StoredProgram) and _only_passes_on(module) is not None


def _only_passes_on(module: torch.nn.Module) -> set[Any] | None:
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    return kinds if kinds and kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} else None


def parameters(module: torch.nn.Module, kinds: Container[Any] = _NAMED) -> tuple[Parameter, ...]:
    """Returns the parameters of the module's forward method that are of these kinds: those that are given by name."""
    if isinstance(module, StoredProgram):
        return module.offered
    return tuple(
        Parameter(name=parameter.name, required=parameter.default is parameter.empty)
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in kinds
    )


def call(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Returns what the module gives for tensors by the names of its parameters."""
    if isinstance(module, StoredProgram):
        return module.run(tensors)
    return module(**tensors)


def tensors_in(result: Any) -> list[torch.Tensor]:
    """Returns the tensors of a result in order, out of tuples and dictionaries."""
    return [value for value in pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]


def no_tensors_in(result: Any) -> tuple[str, ...]:
    """Describes what else a result holds, with its place: numbers, texts and other objects, which no graph gives."""
    leaves = pytree.tree_leaves(result)
    try:
        places = [pytree.keystr(path) for path, _ in pytree.tree_leaves_with_path(result)]
    except ValueError:  # containers may be registered without names for their parts
        places = [f"[{place}]" for place in range(len(leaves))]
    return tuple(
        f"{place or 'the result'} = {str(value)[:_LONGEST_VALUE]}"
        for place, value in zip(places, leaves, strict=True)
        if value is not None and not isinstance(value, torch.Tensor)
    )


def names_in(result: Any) -> tuple[str, ...]:
    """Returns a name for each tensor of a result that is a dictionary: its key; nothing for other results."""
    if not isinstance(result, Mapping):
        return ()
    names: list[str] = []
    for key, value in result.items():
        count = len(tensors_in(value))
        names += [str(key)] if count == 1 else [f"{key}.{number}" for number in range(count)]
    return tuple(names)
