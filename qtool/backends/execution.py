"""Runs a quantized graph on this processor with the results of the machine that it is made for.

The kernels of onnxruntime's CPU provider differ from those of another machine: they fuse Q and DQ in their own way and
may add products in 16 bits. In a graph for an accelerator every node runs by itself, which is the exact semantics of
QuantizeLinear and DequantizeLinear (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from qtool.formats.onnx.map_types import load_model
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Level, Session
from qtool.runtime.steady_draws import file_draws

# Returns the form of a graph to run.
Form: TypeAlias = Callable[[ir.Model], ir.Model]

# The metadata key of the target that a model was quantized for.
TARGET_KEY = "qtool.target"


def as_it_is(model: ir.Model) -> ir.Model:
    """Returns the graph itself."""
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How quantized graphs are run.

    Attributes:
        form: returns the form of a graph to run.
        level: how far onnxruntime may optimize it.
    """

    form: Form = as_it_is
    level: Level = "all"

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
        if self.form is as_it_is and not file_draws(path):
            yield Session(path, threads=threads, level=self.level)
            return
        with self.open(load_model(path), threads=threads) as session:
            yield session


AS_IT_IS = Execution()
NODE_BY_NODE = Execution(level="none")
