"""How this processor runs a quantized graph so that what comes out is what the graph means where it is meant to run.

The kernels of onnxruntime's CPU provider say nothing about another machine's: they fuse Q and DQ in their own way and
may add products in 16 bits. Of a graph for an accelerator every node runs by itself, which is the exact meaning of
QuantizeLinear and DequantizeLinear (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.exact_sums import Form, as_it_is, exact_form
from qtool.formats.onnx.map_types import load_model
from qtool.formats.onnx.onnx_outline import read_outline
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Level, Session
from qtool.runtime.steady_draws import file_draws
from qtool.schemes import PRESETS, DynamicScheme, Scheme

# Where a model keeps the target that it was quantized for.
TARGET_KEY = "qtool.target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Says how quantized graphs are run.

    Attributes:
        form: what gives a graph the form that is run.
        level: how far onnxruntime may rewrite that.
    """

    form: Form = as_it_is
    level: Level = "all"

    @contextmanager
    def open(self, model: ir.Model, *, threads: int = 0) -> Iterator[Session]:
        """Yields a session on ``model``, which is left as it is.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        with open_graph(self.form(model), threads=threads, level=self.level) as session:
            yield session

    @contextmanager
    def open_file(self, path: Path, *, threads: int = 0) -> Iterator[Session]:
        """Yields a session on the model in ``path``, in which random numbers are drawn as ``open`` draws them.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        if self.form is as_it_is and not file_draws(path):
            yield Session(path, threads=threads, level=self.level)
            return
        with self.open(load_model(path), threads=threads) as session:
            yield session


AS_THE_CPU_DOES = Execution()
NODE_BY_NODE = Execution(level="none")


def execution_for(scheme: Scheme | DynamicScheme) -> Execution:
    """Returns how graphs quantized by ``scheme`` are run to judge them.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    if isinstance(scheme, Scheme) and not scheme.for_cpu:
        return NODE_BY_NODE
    return Execution(form=exact_form(scheme))


def execution_of(target: str | None) -> Execution:
    """Returns how a graph is run that says it is for ``target``: its nodes one by one where that is no CPU."""
    scheme = None if target is None else PRESETS.get(target)
    return AS_THE_CPU_DOES if scheme is None or scheme.for_cpu else NODE_BY_NODE


def execution_of_file(path: Path) -> Execution:
    """Returns the same for what the model in ``path`` says."""
    properties = {entry.key: entry.value for entry in read_outline(path).metadata_props}
    return execution_of(properties.get(TARGET_KEY))
