"""The protocols of formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from qtool.formats.trust import NO_TRUST, Trust

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from qtool.formats.findings import AuditNotes
    from qtool.formats.torch.example_inputs import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Named tensors without the program that uses them.

    Attributes:
        tensors: the tensors by name, on the CPU; tied ones share their memory.
        metadata: free text that was stored along with them.
        source: where in the file they were, in words, such as ``"state dict under 'model'"``.
        module: the program that they belong to, where the file holds it too.
        inputs: the program's inputs, where the file declares them.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]
    source: str
    module: torch.nn.Module | None = None
    inputs: tuple[InputSpec, ...] = ()


class GraphSource(Protocol):
    """Reads whole programs.

    Attributes:
        holds: tells this kind of format from the other one.
    """

    holds: ClassVar[Literal["graph"]]

    def read(self, path: Path) -> ir.Model:
        """Reads the program; large tensors stay in the file until they are used.

        Raises:
            FormatError: the file is not of this format, damaged, or unsafe to read.
        """
        ...


class GraphFormat(GraphSource, Protocol):
    """Reads and writes whole programs.

    Attributes:
        suffix: what file names of it end with.
    """

    suffix: ClassVar[str]

    def write(self, model: ir.Model, path: Path) -> None:
        """Writes the program, with files beside it where one file is not enough.

        Raises:
            FormatError: the format cannot hold the program.
        """
        ...


class WeightsSource(Protocol):
    """Reads tensors by name, and the torch module that they belong to where the file holds it.

    Attributes:
        holds: tells this kind of format from the other one.
    """

    holds: ClassVar[Literal["weights"]]

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the tensors; where the format allows it they stay in the file until they are used.

        Raises:
            FormatError: the file is not of this format, damaged, or would do more than ``trust`` allows.
        """
        ...


class WeightsFormat(WeightsSource, Protocol):
    """Reads and writes tensors by name.

    Attributes:
        suffix: what file names of it end with.
    """

    suffix: ClassVar[str]

    def write(self, weights: Weights, path: Path) -> None:
        """Writes the tensors: the same bytes for the same weights.

        Raises:
            FormatError: the format cannot hold one of them.
        """
        ...


@runtime_checkable
class Recognizable(Protocol):
    """A format that tells its own files from others; ``detect`` and ``audit`` ask it about what they do not know."""

    def recognize(self, path: Path, head: bytes) -> str | None:
        """Returns what ``path`` is, in words, or None where it is not of this format.

        Args:
            path: a file that is not empty; nothing in it may be run or trusted.
            head: its first bytes, a few thousand.

        Raises:
            FormatError: the file is of this format and damaged.
        """
        ...

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes what opening ``path``, a file of this format, would run or reach."""
        ...
