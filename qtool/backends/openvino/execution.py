"""Runs graphs in OpenVINO, quantized ones and the float graphs that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.backends.execution import Execution
from qtool.backends.openvino.session import OpenvinoSession
from qtool.formats.onnx.map_types import load_model, without_map_types
from qtool.formats.onnx.onnx_outline import read_outline
from qtool.graph.specs import model_specs
from qtool.private_folder import private_folder
from qtool.runtime.graphs import saved
from qtool.runtime.steady_draws import file_draws, with_steady_draws


@dataclass(frozen=True, slots=True)
class OpenvinoExecution:
    """Runs every graph as OpenVINO's CPU plugin compiles it; see ``Execution``."""

    @property
    def runtime(self) -> str:
        """The key of OpenVINO."""
        return "openvino"

    def as_written(self) -> Execution:
        """Returns itself: no graph is rewritten."""
        return self

    @contextmanager
    def open(self, model: ir.Model, *, threads: int = 0) -> Iterator[OpenvinoSession]:
        """Yields a session on ``model``, which is not modified.

        Raises:
            UsageError: OpenVINO is not installed.
            RuntimeRefusedError: it does not load the model.
        """
        model = with_steady_draws(model)
        inputs, outputs = model_specs(model)
        with private_folder() as folder, saved(model, folder) as source:
            yield OpenvinoSession(source, inputs, outputs, threads=threads)

    @contextmanager
    def open_file(self, path: Path, *, threads: int = 0) -> Iterator[OpenvinoSession]:
        """Yields a session on the model in ``path``, with the same random numbers as ``open``.

        Raises:
            UsageError: OpenVINO is not installed.
            RuntimeRefusedError: it does not load the model.
        """
        if file_draws(path):
            with self.open(load_model(path), threads=threads) as session:
                yield session
            return
        yield opened_file(path, threads=threads)

    def open_float(self, model: ir.Model, *, threads: int = 0) -> AbstractContextManager[OpenvinoSession]:
        """Opens a float graph in the same way.

        Raises:
            UsageError: OpenVINO is not installed.
            RuntimeRefusedError: it does not load the model.
        """
        return self.open(model, threads=threads)


def opened_file(path: Path, *, threads: int = 0, profiles: bool = False) -> OpenvinoSession:
    """Opens the model in ``path`` as it is; its weights are read by OpenVINO alone.

    Raises:
        UsageError: OpenVINO is not installed.
        RuntimeRefusedError: it does not load the model.
    """
    outline = read_outline(path)
    without_map_types(outline.graph, path)
    inputs, outputs = model_specs(ir.from_proto(outline))
    return OpenvinoSession(path, inputs, outputs, threads=threads, profiles=profiles)


IN_OPENVINO = OpenvinoExecution()
