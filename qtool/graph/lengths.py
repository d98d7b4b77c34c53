"""Lengths of axes, free ones included, as products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

# Names that exporters give to lengths which have nothing to do with each other.
_NO_NAMES = frozenset({"", "?", "-1", "none", "unk", "unknown", "dynamic"})


@dataclass(frozen=True, slots=True)
class Length:
    """A product of a number and the lengths that are free.

    Attributes:
        factor: the number.
        names: the free lengths, sorted; one that stands there twice is squared.
    """

    factor: int
    names: tuple[str, ...] = ()

    @property
    def number(self) -> int | None:
        """The length where nothing of it is free."""
        return None if self.names else self.factor

    def __mul__(self, other: Length) -> Length:
        """Multiplies two lengths."""
        return Length(self.factor * other.factor, tuple(sorted((*self.names, *other.names))))

    def divided_by(self, other: Length) -> Length | None:
        """Returns the quotient where it is a whole length, whatever the free lengths are."""
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
    """Returns the lengths of a tensor's axes; a free one without a name is known only to be that of this axis."""
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
    """Returns lengths as the shape of a tensor; what has no name of its own stays open."""
    dims: list[int | str | None] = []
    for length in lengths:
        if length is None or (length.names and (length.factor != 1 or len(length.names) != 1)):
            dims.append(None)
        else:
            dims.append(length.factor if not length.names else length.names[0])
    return ir.Shape(dims)


def _name(name: str | None, value: ir.Value, axis: int) -> str:
    return f"{value.name}#{axis}" if name is None or name.lower() in _NO_NAMES else name
