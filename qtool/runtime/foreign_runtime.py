"""Runs models in an onnxruntime of another Python, in a process of its own: another version, or another machine's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from qtool.calib.specs import Array
from qtool.errors import RuntimeRefusedError
from qtool.runtime.session import Level

# The script that the other Python runs; it needs numpy and onnxruntime alone.
PROBE = Path(__file__).with_name("version_probe.py")

_LEVELS: Mapping[Level, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class ForeignRuntime:
    """Holds one model open in another process.

    Attributes:
        version: the version of onnxruntime there.
        machine: what the process takes for its machine, such as ``x86_64``.
    """

    def __init__(
        self, command: Sequence[str | Path], folder: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts the process.

        Args:
            command: what runs a Python that has numpy and onnxruntime; the script's path is added.
            folder: an empty folder for what goes back and forth.
            environment: its environment variables; None for those of this process.

        Raises:
            RuntimeRefusedError: it does not start, or onnxruntime cannot be imported there.
        """
        self._feeds, self._outputs, self._log = (folder / name for name in ("feeds.npz", "outputs.npz", "log.txt"))
        try:
            # A file, since a pipe that nobody reads would stop the process when it is full.
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*map(str, command), str(PROBE)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    encoding="utf-8",
                    env=None if environment is None else dict(environment),
                )
        except OSError as error:
            raise _refused(f"{command[0]} does not start: {error.strerror}") from error
        self._names: list[str] = []
        try:
            told = self._ask(do="who")
        except RuntimeRefusedError:
            self.close()
            raise
        self.version, self.machine = str(told["onnxruntime"]), str(told["machine"])

    def open(
        self,
        model: Path,
        *,
        level: Level = "all",
        threads: int = 0,
        optimized_to: Path | None = None,
        fuses_signed: bool = False,
    ) -> None:
        """Opens ``model`` instead of the one before; see ``Session``.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it, and the process is gone.
        """
        told = self._ask(
            do="open",
            model=str(model.absolute()),
            level=_LEVELS[level],
            threads=threads,
            optimized_to="" if optimized_to is None else str(optimized_to.absolute()),
            fuses_signed=fuses_signed,
        )
        self._names = told["outputs"]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns all outputs for one batch of inputs; sequences and maps as in ``plain``, texts as numpy's own type.

        Raises:
            RuntimeRefusedError: onnxruntime stops while it runs the model, and the process is gone.
        """
        # Positions, not names: a name may hold what no file name can.
        np.savez(self._feeds, *(feed.astype("U") if feed.dtype.kind == "O" else feed for feed in feeds.values()))
        self._ask(do="run", feeds=str(self._feeds), inputs=list(feeds), to=str(self._outputs))
        with np.load(self._outputs) as stored:
            return {name: stored[f"arr_{place}"] for place, name in enumerate(self._names)}

    def seconds(self) -> float:
        """Runs the last batch again for a turn of some milliseconds, and returns the seconds that one run takes.

        Raises:
            RuntimeRefusedError: onnxruntime stops, and the process is gone.
        """
        return float(self._ask(do="time")["seconds"])

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process.wait()

    def __enter__(self) -> ForeignRuntime:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process."""
        self.close()

    def _ask(self, **order: object) -> dict[str, Any]:
        line = ""
        if self._process.stdin is not None and self._process.stdout is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise _refused(str(answer["error"]).strip().splitlines()[0])
        return answer

    def _last_words(self) -> str:
        """Tells how a process ended that gave no answer."""
        code = self._process.wait()
        if code < 0:
            return f"the process ended with {signal.Signals(-code).name}"
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return said[-1] if said else f"the process ended with {code}"


def of_this_python() -> dict[str, str]:
    """Returns environment variables with which this Python finds the packages that this process has found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _refused(problem: str) -> RuntimeRefusedError:
    return RuntimeRefusedError(problem, fix="leave this version out, or run the model in it by itself")
