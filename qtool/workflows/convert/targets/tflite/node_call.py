"""One node of a graph, with the values that its inputs have while the torch program runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt
import onnx_ir as ir
import torch

from qtool.errors import InputError

Operator: TypeAlias = "Callable[[NodeCall], torch.Tensor | tuple[torch.Tensor, ...]]"


class UnsupportedError(InputError):
    """The torch program has no form of a node."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        """Names the node."""
        super().__init__(
            f"'{node.name}' ({node.op_type}) cannot be converted to TFLite: {reason}",
            fix="keep the model as ONNX, or convert the part without it (`qtool split`)",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCall:
    """A node and its inputs.

    Attributes:
        node: the node, of opset 18 or newer.
        values: the values of its inputs; None for those that it leaves out.
        constants: the same of inputs that are stored; None for others.
    """

    node: ir.Node
    values: tuple[torch.Tensor | None, ...]
    constants: tuple[npt.NDArray[Any] | None, ...]

    def has(self, index: int) -> bool:
        """Returns whether the node has that input."""
        return index < len(self.values) and self.values[index] is not None

    def tensor(self, index: int = 0) -> torch.Tensor:
        """Returns an input as a tensor.

        Raises:
            UnsupportedError: the node does not have it.
        """
        value = self.values[index] if self.has(index) else None
        if value is None:
            raise UnsupportedError(self.node, f"input {index} is missing")
        return value

    def optional(self, index: int) -> torch.Tensor | None:
        """Returns an input as a tensor; None where the node leaves it out."""
        return self.tensor(index) if self.has(index) else None

    def stored(self, index: int) -> npt.NDArray[Any]:
        """Returns an input that is known before the program runs.

        Raises:
            UnsupportedError: it is computed.
        """
        value = self.constants[index] if self.has(index) else None
        if value is None:
            raise UnsupportedError(self.node, f"its input {index} is computed at run time")
        return value

    def integers(self, index: int) -> list[int]:
        """Returns a stored input that is a list of integers.

        Raises:
            UnsupportedError: it is computed.
        """
        return [int(number) for number in self.stored(index).reshape(-1)]

    def stored_number(self, index: int) -> float | None:
        """Returns a stored input that is one number; None where the node leaves it out.

        Raises:
            UnsupportedError: it is computed.
        """
        return float(self.stored(index).reshape(())) if self.has(index) else None

    def axes(self, index: int) -> list[int]:
        """Returns axes given by an input; an empty list where there is none."""
        return self.integers(index) if self.has(index) else []

    def integer(self, name: str, default: int) -> int:
        """Returns an integer attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def number(self, name: str, default: float) -> float:
        """Returns a float attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def text(self, name: str, default: str) -> str:
        """Returns an attribute that is a text."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def numbers(self, name: str, default: list[int]) -> list[int]:
        """Returns an attribute that is a list of integers."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else list(attribute.as_ints())

    def only(self, name: str, allowed: Mapping[str, str] | tuple[str, ...], default: str) -> str:
        """Returns an attribute that is a text, one of ``allowed``.

        Raises:
            UnsupportedError: it is another one.
        """
        found = self.text(name, default)
        if found not in allowed:
            raise UnsupportedError(self.node, f"its {name} is {found}")
        return found
