"""Loads, converts and runs a TensorFlow model in a separate process."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from qtool.formats.errors import FormatError
from qtool.formats.torch.architecture import Architecture

_EXTRA = ("tensorflow", "tf2onnx")
_LONGEST_REASON = 300
# The names of files and lines inside libraries do not help the user.
_NOISE = re.compile(r"\s+|\[Op:\w+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDescription:
    """Describes an input or output of the loaded model.

    Attributes:
        name: its name.
        dims: its shape, None for a free length; None where the rank is free.
        dtype: its element type.
    """

    name: str
    dims: tuple[int | None, ...] | None
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelToLoad:
    """A model, and the part of it to use.

    Attributes:
        path: the file or folder.
        kind: one of ``qtool.formats.tensorflow.tensorflow_kinds``.
        signature: which signature of a SavedModel.
        inputs: the nodes to feed, of a frozen graph.
        outputs: the nodes to read, of a frozen graph.
        architecture: what builds the model of weights alone.
    """

    path: Path
    kind: str
    signature: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    architecture: Architecture | None = None


def check_installed() -> None:
    """Makes sure that the libraries are there, without importing them.

    Raises:
        FormatError: one is not installed.
    """
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise FormatError(
            f"converting TensorFlow models needs {' and '.join(missing)}, not installed here",
            fix="install the extra: pip install 'qtool-onnx[tensorflow]' (inspect works without it)",
        )


class TensorFlowProcess:
    """Holds one loaded model.

    Attributes:
        inputs: what it is fed.
        outputs: what it returns.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path, log: IO[str], model: ModelToLoad) -> None:
        """Loads ``model``; ``folder`` is for exchanging arrays, ``log`` is where the process writes its messages.

        Raises:
            FormatError: TensorFlow does not load it.
        """
        self._process, self._folder, self._log, self._path = process, folder, log, model.path
        request: dict[str, Any] = {
            "path": str(model.path),
            "kind": model.kind,
            "signature": model.signature,
            "inputs": model.inputs,
            "outputs": model.outputs,
        }
        if model.architecture is not None:
            request["project"] = str(Path(__file__).resolve().parent.parent)
            request["factory"] = model.architecture.factory
            request["kwargs"] = dict(model.architecture.kwargs)
        answer = self._ask("load", request, f"TensorFlow does not load {model.path}")
        self.inputs = tuple(_description(one) for one in answer["inputs"])
        self.outputs = tuple(_description(one) for one in answer["outputs"])

    def convert(
        self, output: Path, *, opset: int, channels_first: Sequence[str], shapes: Mapping[str, Sequence[int | None]]
    ) -> None:
        """Writes the model as ONNX, unchecked.

        Args:
            output: the file.
            opset: its opset.
            channels_first: the inputs whose channels come first in the ONNX model.
            shapes: shapes to take for those that the model declares.

        Raises:
            FormatError: tf2onnx fails.
        """
        request = {"output": str(output), "opset": opset, "nchw": list(channels_first), "shapes": dict(shapes)}
        self._ask("convert", request, f"tf2onnx does not convert {self._path}")

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Returns the outputs, in order.

        Raises:
            FormatError: TensorFlow stops.
        """
        feeds_file, outputs_file = self._folder / "feeds.npz", self._folder / "outputs.npz"
        # Positions, not names: a name may contain characters that file names cannot.
        np.savez(feeds_file, *(feeds[one.name] for one in self.inputs))
        request = {"feeds": str(feeds_file), "output": str(outputs_file)}
        self._ask("run", request, f"TensorFlow stops while it runs {self._path}")
        with np.load(outputs_file, allow_pickle=False) as arrays:
            return [arrays[f"arr_{position}"] for position in range(len(self.outputs))]

    def _ask(self, what: str, request: Mapping[str, Any], problem: str) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise FormatError(f"{problem}: its process has no pipes", fix="run again")
        try:
            self._process.stdin.write(json.dumps({"do": what, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise FormatError(f"{problem}: {self._last_words()}", fix="run with --debug to see what TensorFlow says")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("fix") is not None:
            raise FormatError(_shortened(answer["error"]), fix=answer["fix"])
        if "error" in answer:
            raise FormatError(f"{problem}: {_shortened(answer['error'])}", fix=_fix(answer["error"]))
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"its process ended with {code}{': ' + _shortened(lines[-1]) if lines else ''}"


@contextmanager
def loaded(model: ModelToLoad) -> Iterator[TensorFlowProcess]:
    """Yields ``model`` in a process that ends with the block.

    Raises:
        FormatError: TensorFlow is not installed, or does not load the model.
    """
    check_installed()
    worker = Path(__file__).with_name("tensorflow_worker.py")
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            # -P: neither the working folder nor that of the script is part of the search path.
            [sys.executable, "-P", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        ) as process,
    ):
        try:
            yield TensorFlowProcess(process, Path(folder), log, model)
        finally:
            process.kill()


def _description(answer: Mapping[str, Any]) -> TensorDescription:
    dtype = answer["dtype"]
    dims = answer["dims"]
    return TensorDescription(
        name=answer["name"],
        dims=None if dims is None else tuple(dims),
        dtype=np.dtype(np.object_ if dtype == "string" else np.float32 if dtype == "bfloat16" else dtype),
    )


def _shortened(text: str) -> str:
    line = _NOISE.sub(" ", text).strip()
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"


def _fix(reason: str) -> str:
    if "Lambda" in reason and "deserialization" in reason:
        return "export it as a SavedModel, where its own code is: model.export(folder)"
    if "Could not locate" in reason or "Unknown layer" in reason or "custom object" in reason:
        return "export it where its own layers are defined: model.export(folder) makes a SavedModel"
    return "export the model again as a SavedModel: model.export(folder)"
