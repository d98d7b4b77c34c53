"""The protocols of formats.

The module of a format is imported to recognize files, so it imports no library for models at its top: what needs torch
or onnx is imported in the functions that read and write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from qtool.formats.trust import NO_TRUST, Trust

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    # Gives what is written instead of a tensor of that name, in blocks of rows.
    Change = Callable[[str, torch.Tensor], Iterable[torch.Tensor]]

    from qtool.formats.candidate import Candidate, Recognized
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


class Format(Protocol):
    """Recognizes its own files, and tells what opening them would do."""

    def recognize(self, file: Candidate) -> Recognized | None:
        """Returns what ``file`` is, by its content, damaged or not; None where it is not of this format.

        Raises:
            FormatError: it is a zip file whose directory cannot be read.
        """
        ...

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes what opening ``path``, a file of this format, would run or reach, and what in it does not add up.

        Raises:
            FormatError: the file is so damaged that this cannot be said.
        """
        ...


class GraphSource(Format, Protocol):
    """Reads whole programs.

    Attributes:
        holds: tells the kinds of formats apart.
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


class WeightsSource(Format, Protocol):
    """Reads tensors by name.

    Attributes:
        holds: tells the kinds of formats apart.
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


class ProgramSource(Format, Protocol):
    """Reads the programs of torch together with their weights.

    Attributes:
        holds: tells the kinds of formats apart.
    """

    holds: ClassVar[Literal["program"]]

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the program as the module of its weights.

        Raises:
            FormatError: the file is not of this format, damaged, or would do more than ``trust`` allows.
        """
        ...


class TensorFlowSource(Format, Protocol):
    """Belongs to TensorFlow, which reads it itself, in a process of its own.

    Attributes:
        holds: tells the kinds of formats apart.
    """

    holds: ClassVar[Literal["tensorflow"]]


@runtime_checkable
class SeveralFiles(Protocol):
    """A format that may keep weights in other files beside the one that is named."""

    def companion_files(self, path: Path) -> tuple[str, ...]:
        """Returns these files, relative to the folder of ``path``.

        Raises:
            FormatError: the file is damaged, or one of the others is missing or outside of the folder.
        """
        ...
