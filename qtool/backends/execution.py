"""Runs a quantized graph on this processor with the results of the machine that it is made for.

A runtime that is installed runs its own graphs. Graphs for other machines run in onnxruntime, the kernels of whose CPU
provider differ from theirs: they fuse Q and DQ in their own way and may add products in 16 bits. There every node runs
by itself, which is the exact semantics of QuantizeLinear and DequantizeLinear
(https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import onnx_ir as ir

from qtool.formats.onnx.map_types import load_model
from qtool.formats.onnx.onnx_outline import read_outline
from qtool.runtime.graphs import open_graph
from qtool.runtime.long_graphs import may_be_long
from qtool.runtime.running_model import RunningModel
from qtool.runtime.session import Level, Session
from qtool.runtime.steady_draws import outline_draws

# Returns the form of a graph to run.
Form: TypeAlias = Callable[[ir.Model], ir.Model]

# The metadata key of the target that a model was quantized for.
TARGET_KEY = "qtool.target"


def as_it_is(model: ir.Model) -> ir.Model:
    """Returns the graph itself."""
    return model


class Execution(Protocol):
    """How quantized graphs are run, and the float graphs that they are compared with.

    Attributes:
        runtime: the key in ``RUNTIMES`` of what runs them.
    """

    @property
    def runtime(self) -> str:
        """The key in ``RUNTIMES`` of what runs them."""
        ...

    def as_written(self) -> Execution:
        """Returns how the same graphs are run to time them: in the form in which they are written."""
        ...

    def open(self, model: ir.Model, *, threads: int = 0) -> AbstractContextManager[RunningModel]:
        """Opens a quantized ``model``, which is not modified.

        Raises:
            RuntimeRefusedError: the runtime does not load it.
        """
        ...

    def open_file(self, path: Path, *, threads: int = 0) -> AbstractContextManager[RunningModel]:
        """Opens the quantized model in ``path``, with the same random numbers as ``open``.

        Raises:
            RuntimeRefusedError: the runtime does not load it.
        """
        ...

    def open_float(self, model: ir.Model, *, threads: int = 0) -> AbstractContextManager[RunningModel]:
        """Opens a float ``model``, which is not modified, as it runs beside quantized ones.

        Raises:
            RuntimeRefusedError: the runtime does not load it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxruntimeExecution:
    """Runs graphs in onnxruntime; see ``Execution``.

    Attributes:
        form: returns the form of a graph to run.
        level: how far onnxruntime may optimize it.
    """

    form: Form = as_it_is
    level: Level = "all"

    @property
    def runtime(self) -> str:
        """The key of onnxruntime."""
        return "onnxruntime"

    def as_written(self) -> Execution:
        """Returns its own kernels, on the graph itself."""
        return AS_IT_IS

    @contextmanager
    def open(self, model: ir.Model, *, threads: int = 0) -> Iterator[Session]:
        """Yields a session on ``model``, which is not modified.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        with open_graph(self.form(model), threads=threads, level=self.level) as session:
            yield session

    @contextmanager
    def open_file(self, path: Path, *, threads: int = 0) -> Iterator[Session]:
        """Yields a session on the model in ``path``, with the same random numbers as ``open``.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        outline = read_outline(path)
        if self.form is as_it_is and not outline_draws(outline) and not may_be_long(outline):
            del outline
            yield Session(path, threads=threads, level=self.level)
            return
        with self.open(load_model(path), threads=threads) as session:
            yield session

    def open_float(self, model: ir.Model, *, threads: int = 0) -> AbstractContextManager[Session]:
        """Opens a float graph as it is, without further copies of its weights.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        return open_graph(model, threads=threads, prepacks=False)


AS_IT_IS = OnnxruntimeExecution()
NODE_BY_NODE = OnnxruntimeExecution(level="none")
