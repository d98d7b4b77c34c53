"""The protocol of formats that other runtimes read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeAlias

from qtool.calib.specs import Array, Feed
from qtool.errors import InputError
from qtool.passes.half.half_precision import HalfName

Run: TypeAlias = Callable[[Feed], Mapping[str, Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerLayers:
    """How many layers with weights run on integers in a runtime.

    Attributes:
        integer: those that do.
        total: all of them.
    """

    integer: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedProgram:
    """A written model, open in its runtime.

    Attributes:
        run: returns the outputs, in the order of the source's, by name.
        layers: what runs on integers.
        remarks: what people must know to run it, in words.
    """

    run: Run
    layers: IntegerLayers
    remarks: tuple[str, ...] = ()


class RuntimeFormat(Protocol):
    """A format that another runtime reads, and its own library writes from ONNX.

    Attributes:
        holds: tells this kind of format from the others.
        suffix: what file names of it end with.
        runtime: what runs it, for people.
        halves: the half precisions that it can be written in.
        fixes_lengths: whether every length of its inputs is fixed when it is written.
    """

    holds: ClassVar[Literal["program"]]
    suffix: ClassVar[str]
    runtime: ClassVar[str]
    halves: ClassVar[tuple[HalfName, ...]]
    fixes_lengths: ClassVar[bool]

    def files(self, path: Path) -> tuple[Path, ...]:
        """Returns all files that are written for ``path``, itself included."""
        ...

    def check_installed(self) -> None:
        """Passes when the libraries that it needs are there; they are not imported.

        Raises:
            InputError: one is not installed.
        """
        ...

    def write(self, graph: Path, path: Path, half: HalfName | None) -> None:
        """Writes the ONNX graph in ``graph`` to ``path``, with the other files beside it.

        Raises:
            InputError: the library does not convert the graph.
        """
        ...

    def open(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> AbstractContextManager[OpenedProgram]:
        """Opens what ``write`` wrote of a graph with these inputs and outputs.

        Raises:
            InputError: the runtime does not load or run it.
        """
        ...


def check_packages(runtime: str, extra: str, packages: tuple[str, ...]) -> None:
    """Passes when ``packages`` are installed, which the extra of that name brings; they are not imported.

    Raises:
        InputError: one is not.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"writing models for {runtime} needs {' and '.join(missing)}, not installed here",
            fix=f"install the extra: pip install 'qtool-onnx[{extra}]'",
        )
