"""What every format can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Holds named tensors without the program that uses them.

    Attributes:
        tensors: the tensors by name, on the CPU; tied ones share their memory.
        metadata: free text that was stored along with them.
        source: where in the file they were, in words, such as ``"state dict under 'model'"``.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]
    source: str


class GraphFormat(Protocol):
    """Stores whole programs.

    Attributes:
        holds: tells this kind of format from the other one.
        suffix: what file names of it end with.
    """

    holds: ClassVar[Literal["graph"]]
    suffix: ClassVar[str]

    def read(self, path: Path) -> ir.Model:
        """Reads the program; large tensors stay in the file until they are used.

        Raises:
            FormatError: the file is not of this format, damaged, or unsafe to read.
        """
        ...

    def write(self, model: ir.Model, path: Path) -> None:
        """Writes the program, with files beside it where one file is not enough.

        Raises:
            FormatError: the format cannot hold the program.
        """
        ...


class WeightsFormat(Protocol):
    """Stores tensors by name.

    Attributes:
        holds: tells this kind of format from the other one.
        suffix: what file names of it end with.
    """

    holds: ClassVar[Literal["weights"]]
    suffix: ClassVar[str]

    def read(self, path: Path) -> Weights:
        """Reads the tensors; where the format allows it they stay in the file until they are used.

        Raises:
            FormatError: the file is not of this format, damaged, or unsafe to read.
        """
        ...

    def write(self, weights: Weights, path: Path) -> None:
        """Writes the tensors: the same bytes for the same weights.

        Raises:
            FormatError: the format cannot hold one of them.
        """
        ...
