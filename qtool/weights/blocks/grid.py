"""The integers of weights in blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid:
    """The integers of blocks.

    Attributes:
        bits: 2, 4 or 8.
        block: inputs in a block; None for one block an output.
        symmetric: whether zero is the middle of the grid.
    """

    bits: int
    block: int | None
    symmetric: bool

    @property
    def highest(self) -> int:
        """The highest integer; the lowest is 0."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return 1 << (self.bits - 1)

    def length(self, inputs: int) -> int:
        """The inputs in a block of a matrix with ``inputs`` inputs."""
        return inputs if self.block is None else self.block

    @property
    def description(self) -> str:
        """The grid in words, such as ``4-bit asymmetric weights in blocks of 32``."""
        spread = "per-channel" if self.block is None else f"in blocks of {self.block}"
        return f"{self.bits}-bit {'symmetric' if self.symmetric else 'asymmetric'} weights {spread}"
