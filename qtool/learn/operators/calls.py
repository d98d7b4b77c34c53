"""How an operator is called: its attributes, and the inputs that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Inputs: TypeAlias = Sequence[torch.Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One node of a graph, as its operator sees it.

    Attributes:
        attributes: plain values by name: numbers, texts, lists of them, arrays.
        outputs: how many outputs the node names, empty ones included.
    """

    attributes: Mapping[str, Any]
    outputs: int

    def integer(self, name: str, default: int) -> int:
        """Returns an integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """Returns a float attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Returns a string attribute."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integers(self, name: str) -> list[int] | None:
        """Returns a list of integers; None where the node has no such attribute."""
        value = self.attributes.get(name)
        return None if value is None else [int(item) for item in value]


Operator: TypeAlias = Callable[[Call, Inputs], torch.Tensor | tuple[torch.Tensor | None, ...]]


def given(inputs: Inputs, index: int) -> torch.Tensor:
    """Returns an input that the operator requires.

    Raises:
        LookupError: the node does not have it.
    """
    value = optional(inputs, index)
    if value is None:
        raise LookupError(f"input {index} is missing")
    return value


def optional(inputs: Inputs, index: int) -> torch.Tensor | None:
    """Returns an input that may be missing."""
    return inputs[index] if index < len(inputs) else None


def listed(inputs: Inputs, index: int) -> list[int] | None:
    """Returns the numbers of a one-dimensional input of integers; None where it is missing."""
    value = optional(inputs, index)
    return None if value is None else [int(item) for item in value.reshape(-1).tolist()]


def axes_of(call: Call, inputs: Inputs, index: int = 1) -> list[int] | None:
    """Returns axes, which are an attribute in old versions and an input in new ones."""
    axes = call.integers("axes")
    return listed(inputs, index) if axes is None else axes
