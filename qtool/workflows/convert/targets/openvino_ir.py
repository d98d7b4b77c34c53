"""Writes OpenVINO's intermediate representation (IR) with OpenVINO itself, and runs it on OpenVINO's CPU device.

Source: https://docs.openvino.ai/2026/openvino-workflow/model-preparation/convert-model-to-ir.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from qtool.calib.specs import Array, Feed
from qtool.errors import InputError
from qtool.passes.half.half_precision import HalfName
from qtool.workflows.convert.targets.base import IntegerLayers, OpenedProgram, check_packages

_LONGEST_REASON = 200
_PLACES = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully converted", "Summary:")
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
        import openvino

        try:
            model = openvino.Core().read_model(graph)
            _name_steadily(model)
            openvino.save_model(model, path, compress_to_fp16=half is not None)
        except RuntimeError as error:
            raise InputError(
                f"OpenVINO does not convert {graph.name}: {_reason(error)}",
                fix="run `qtool optimize` on it first, or convert the part that OpenVINO supports (`qtool split`)",
            ) from error

    @contextmanager
    def open(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[OpenedProgram]:
        """Compiles the graph for the CPU, in float32 where it is float.

        Raises:
            InputError: OpenVINO does not compile it.
        """
        import openvino

        try:
            compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as error:
            raise _refused(path, error) from error

        def run(feed: Feed) -> Mapping[str, Array]:
            try:
                results = compiled(dict(feed))
            except RuntimeError as error:
                raise _refused(path, error) from error
            return {name: results[place] for name, place in zip(outputs, compiled.outputs, strict=True)}

        yield OpenedProgram(run=run, layers=_layers(compiled))


def _layers(compiled: Any) -> IntegerLayers:
    """Counts layers in the executed graph."""
    infos = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ops()]
    precisions = [info["runtimePrecision"].astype(str) for info in infos if info["layerType"].astype(str) in _LAYERS]
    return IntegerLayers(integer=sum(one in _INTEGERS for one in precisions), total=len(precisions))


def _refused(path: Path, error: RuntimeError) -> InputError:
    return InputError(
        f"OpenVINO does not run what it made of {path.stem}: {_reason(error)}",
        fix="run `qtool optimize` on the model first, or convert the part that OpenVINO supports (`qtool split`)",
    )


def _reason(error: RuntimeError) -> str:
    """Returns what OpenVINO's message says of operators that it does not know, or else what it says first.

    Before that stand places in its sources, and operators behind unknown ones fail as well.
    """
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(_PLACES)]
    unknown = [line for line in said if line.startswith("No conversion rule")]
    return next(iter((*unknown, *said)), type(error).__name__)[:_LONGEST_REASON]


def _name_steadily(model: Any) -> None:
    """Names operators that have no name by their place, instead of by how many this process has made before."""
    operators = model.get_ordered_ops()
    unnamed = [operator for operator in operators if operator.get_friendly_name() == operator.get_name()]
    taken = {operator.get_friendly_name() for operator in operators}.difference(
        operator.get_friendly_name() for operator in unnamed
    )
    for number, operator in enumerate(unnamed):
        name = f"{operator.get_type_name()}_{number}"
        while name in taken:
            name += "_"
        operator.set_friendly_name(name)
