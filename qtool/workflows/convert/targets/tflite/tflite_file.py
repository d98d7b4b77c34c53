"""Writes TFLite files with litert-torch, and runs them in LiteRT's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from qtool.calib.specs import Array, Feed
from qtool.errors import InputError
from qtool.passes.half.half_precision import HalfName
from qtool.workflows.convert.targets.base import IntegerLayers, OpenedProgram, check_packages
from qtool.workflows.convert.targets.tflite.conversion_process import REASON
from qtool.workflows.convert.targets.tflite.identifiers import identifiers

_FIX = "keep the model as ONNX, or convert it with --to openvino"
_LAYERS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV", "CONV_3D"})


class TfliteFile:
    """Is one ``.tflite`` file, whose inputs have fixed lengths."""

    holds: ClassVar[Literal["program"]] = "program"
    suffix: ClassVar[str] = ".tflite"
    runtime: ClassVar[str] = "LiteRT"
    halves: ClassVar[tuple[HalfName, ...]] = ()
    fixes_lengths: ClassVar[bool] = True

    def files(self, path: Path) -> tuple[Path, ...]:
        """Returns the file."""
        return (path,)

    def check_installed(self) -> None:
        """Passes when litert-torch and LiteRT are installed.

        Raises:
            InputError: one is not.
        """
        check_packages(self.runtime, "tflite", ("litert_torch", "ai_edge_litert"))

    def write(self, graph: Path, path: Path, half: HalfName | None) -> None:
        """Writes the file, in a separate process.

        Raises:
            InputError: the graph has an operator or integers that LiteRT does not have, or litert-torch fails.
        """
        module = "qtool.workflows.convert.targets.tflite.conversion_process"
        done = subprocess.run(
            # -P: the working folder is not part of the search path.
            [sys.executable, "-P", "-m", module, str(graph), str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            check=False,
        )
        if done.returncode == 0 and path.exists():
            return
        told = [line.removeprefix(REASON) for line in done.stdout.splitlines() if line.startswith(REASON)]
        if told:
            found = json.loads(told[-1])
            raise InputError(found["problem"], fix=found["fix"] or _FIX)
        raise InputError(
            f"litert-torch does not convert {graph.name}: its process ended with {done.returncode}", fix=_FIX
        )

    @contextmanager
    def open(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[OpenedProgram]:
        """Opens the file in LiteRT's interpreter.

        Raises:
            InputError: LiteRT does not load or run it.
        """
        from ai_edge_litert.interpreter import Interpreter

        try:
            plain = Interpreter(model_path=str(path))
            runner = plain.get_signature_runner()
        except (ValueError, RuntimeError) as error:
            raise _refused(path, error) from error
        taken, given = runner.get_input_details(), runner.get_output_details()
        names = identifiers([*inputs, *outputs])
        called = dict(zip(inputs, names, strict=False))

        def run(feed: Feed) -> Mapping[str, Array]:
            try:
                found = runner(**{called[name]: _stored(array, taken[called[name]]) for name, array in feed.items()})
            except (ValueError, RuntimeError) as error:
                raise _refused(path, error) from error
            return {
                output: _real(found[name], given[name])
                for output, name in zip(outputs, names[len(inputs) :], strict=True)
            }

        yield OpenedProgram(run=run, layers=_layers(plain), remarks=_remarks({**taken, **given}, list(taken)))


def _remarks(details: Mapping[str, Any], inputs: Sequence[str]) -> tuple[str, ...]:
    """Says which inputs and outputs are integers in the file."""
    found = []
    for name, one in details.items():
        scale, zero = one["quantization"]
        if scale:
            what = "input" if name in inputs else "output"
            found.append(f"{what} '{name}' is {np.dtype(one['dtype'])}: (integer - {zero}) * {scale:.6g} is the number")
    return tuple(found)


def _stored(array: Array, details: Mapping[str, Any]) -> Array:
    """Returns an input as the file takes it."""
    scale, zero = details["quantization"]
    if scale and array.dtype.kind == "f" and np.dtype(details["dtype"]).kind != "f":
        limits = np.iinfo(details["dtype"])
        array = np.clip(np.rint(array / np.float32(scale)) + zero, limits.min, limits.max)
    return array.astype(details["dtype"])


def _real(array: Array, details: Mapping[str, Any]) -> Array:
    """Returns an output as numbers."""
    scale, zero = details["quantization"]
    if not scale or array.dtype.kind == "f":
        return array
    return (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def _layers(interpreter: Any) -> IntegerLayers:
    """Counts layers, whose weights and results are integers or not."""
    types = {details["index"]: np.dtype(details["dtype"]) for details in interpreter.get_tensor_details()}
    results = [
        types[int(operator["outputs"][0])]
        for operator in interpreter._get_ops_details()
        if operator["op_name"] in _LAYERS
    ]
    return IntegerLayers(integer=sum(dtype.kind in "iu" for dtype in results), total=len(results))


def _refused(path: Path, error: Exception) -> InputError:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return InputError(
        f"LiteRT does not run what litert-torch made of {path.stem}: {(said or ['no reason'])[0]}", fix=_FIX
    )
