"""OpenVINO's intermediate representation (IR), run on OpenVINO's CPU device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from qtool.backends.openvino.ir_file import write_ir
from qtool.backends.openvino.session import ExecutedLayer, OpenvinoSession
from qtool.calib.specs import Array, Feed, TensorSpec
from qtool.errors import InputError, RuntimeRefusedError
from qtool.passes.half.half_precision import HalfName
from qtool.workflows.convert.targets.base import IntegerLayers, OpenedProgram, check_packages

# Layers with weights in the executed graph, by what the CPU device calls them.
_LAYERS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_INTEGERS = frozenset({"i8", "u8"})


class OpenVinoIr:
    """Is the pair of an ``.xml`` file, the graph, and a ``.bin`` file, its weights."""

    holds: ClassVar[Literal["program"]] = "program"
    suffix: ClassVar[str] = ".xml"
    runtime: ClassVar[str] = "OpenVINO"
    halves: ClassVar[tuple[HalfName, ...]] = ("float16",)
    fixes_lengths: ClassVar[bool] = False

    def files(self, path: Path) -> tuple[Path, ...]:
        """Returns the graph and the weights."""
        return path, path.with_suffix(".bin")

    def check_installed(self) -> None:
        """Passes when OpenVINO is installed.

        Raises:
            InputError: it is not.
        """
        check_packages(self.runtime, "openvino", ("openvino",))

    def write(self, graph: Path, path: Path, half: HalfName | None) -> None:
        """Writes both files; with ``half``, float weights are stored as float16.

        Raises:
            InputError: OpenVINO does not convert the graph.
        """
        write_ir(graph, path, halves=half is not None)

    @contextmanager
    def open(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[OpenedProgram]:
        """Compiles the graph for the CPU, in float32 where it is float.

        Raises:
            InputError: OpenVINO does not compile it.
        """
        try:
            session = OpenvinoSession(path, _specs(inputs), _specs(outputs))
        except RuntimeRefusedError as error:
            raise _refused(path, error) from error

        def run(feed: Feed) -> Mapping[str, Array]:
            try:
                return session.run(feed)
            except RuntimeRefusedError as error:
                raise _refused(path, error) from error

        yield OpenedProgram(run=run, layers=_layers(session.executed()))


def _specs(names: Sequence[str]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, np.dtype(np.float32), None) for name in names)


def _layers(executed: Sequence[ExecutedLayer]) -> IntegerLayers:
    layers = [layer for layer in executed if layer.kind in _LAYERS]
    return IntegerLayers(integer=sum(layer.precision in _INTEGERS for layer in layers), total=len(layers))


def _refused(path: Path, error: RuntimeRefusedError) -> InputError:
    return InputError(
        f"OpenVINO does not run what it made of {path.stem}: {error.problem}",
        fix="run `qtool optimize` on the model first, or convert the part that OpenVINO supports (`qtool split`)",
    )
