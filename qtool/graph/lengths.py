"""Dimensions, symbolic ones included, as products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

# Names that exporters give to unrelated dimensions.
_NO_NAMES = frozenset({"", "?", "-1", "none", "unk", "unknown", "dynamic"})


@dataclass(frozen=True, slots=True)
class Length:
    """The product of a number and symbolic dimensions.

    Attributes:
        factor: the number.
        names: the symbolic dimensions, sorted; one that occurs twice is squared.
    """

    factor: int
    names: tuple[str, ...] = ()

    @property
    def number(self) -> int | None:
        """The dimension where nothing of it is symbolic."""
        return None if self.names else self.factor

    def __mul__(self, other: Length) -> Length:
        """Multiplies two lengths."""
        return Length(self.factor * other.factor, tuple(sorted((*self.names, *other.names))))

    def divided_by(self, other: Length) -> Length | None:
        """Returns the quotient where it is whole for all values of the symbolic dimensions."""
        left = list(self.names)
        for name in other.names:
            if name not in left:
                return None
            left.remove(name)
        if other.factor == 0 or self.factor % other.factor:
            return None
        return Length(self.factor // other.factor, tuple(left))


Lengths: TypeAlias = tuple[Length | None, ...]


def dims_of(value: ir.Value) -> Lengths | None:
    """Returns the dimensions of a tensor; an unknown one without a name equals none but itself."""
    if value.shape is None:
        return None
    return tuple(
        Length(dim) if isinstance(dim, int) else Length(1, (_name(dim.value, value, axis),))
        for axis, dim in enumerate(value.shape)
    )


def product(lengths: Iterable[Length | None]) -> Length | None:
    """Multiplies lengths; None where one of them is unknown."""
    total = Length(1)
    for length in lengths:
        if length is None:
            return None
        total = total * length
    return total


def shape_of(lengths: Sequence[Length | None]) -> ir.Shape:
    """Returns dimensions as the shape of a tensor; those without a name stay unknown."""
    dims: list[int | str | None] = []
    for length in lengths:
        if length is None or (length.names and (length.factor != 1 or len(length.names) != 1)):
            dims.append(None)
        else:
            dims.append(length.factor if not length.names else length.names[0])
    return ir.Shape(dims)


def _name(name: str | None, value: ir.Value, axis: int) -> str:
    return f"{value.name}#{axis}" if name is None or name.lower() in _NO_NAMES else name
