"""onnxruntime's aarch64 package under emulation, as what opens and runs models in tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.errors import RuntimeRefusedError
from qtool.runtime.foreign_runtime import ForeignRuntime
from qtool.runtime.session import Level
from tests.arm.machines import FOLDER, Machine, command

Feed = Mapping[str, npt.NDArray[Any]]


class EmulatedRuntime:
    """Opens one model after the other in a process, and starts another one after an error has ended it."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self._folder = folder
        self._process: ForeignRuntime | None = None

    @property
    def runtime(self) -> ForeignRuntime:
        """The process."""
        if self._process is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            variables = {**os.environ, "PYTHONPATH": str(FOLDER / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
            self._process = ForeignRuntime(command(self._machine), self._folder, environment=variables)
        return self._process

    @property
    def version(self) -> tuple[int, ...]:
        """Its version of onnxruntime, to the minor number."""
        return tuple(int(part) for part in self.runtime.version.split(".")[:2])

    def optimize(self, model: bytes, to: Path, level: Level) -> None:
        """Writes the graph as onnxruntime rewrites it."""
        self._open(model, level, to)

    def run(self, model: bytes, feed: Feed, level: Level = "all") -> dict[str, npt.NDArray[Any]]:
        """Returns what a model gives out."""
        self._open(model, level, None)
        try:
            return dict(self.runtime.run({name: np.asarray(value) for name, value in feed.items()}))
        except RuntimeRefusedError:
            self.close()
            raise

    def _open(self, model: bytes, level: Level, to: Path | None) -> None:
        runtime = self.runtime
        path = self._folder / "model.onnx"
        path.write_bytes(model)
        try:
            runtime.open(path, level=level, threads=1, optimized_to=to)
        except RuntimeRefusedError:
            self.close()
            raise

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> EmulatedRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
