"""Runs large float graphs in little memory, as quantizing weights alone needs it: one layer's at a time.

onnxruntime copies weights into the order of its kernels as it opens a graph. Those of a graph that does not fit into
one message are mapped from a file instead; a run is slower then, and the system may drop what it has read.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from qtool.backends.execution import OnnxruntimeExecution
from qtool.formats.onnx.onnx_file import weights_nbytes
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session

_LARGE_BYTES = 1_800_000_000


class FrugalExecution(OnnxruntimeExecution):
    """Maps the weights of large float graphs, and gives memory back after each session; see ``Execution``."""

    @contextmanager
    def open(self, model: ir.Model, *, threads: int = 0) -> Iterator[Session]:
        """Yields a session on ``model``, which is not modified.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        with open_frugally(model, threads=threads) as session:
            yield session

    @contextmanager
    def open_float(self, model: ir.Model, *, threads: int = 0) -> Iterator[Session]:
        """Yields a session on a float graph.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        with open_frugally(model, threads=threads) as session:
            yield session


@contextmanager
def open_frugally(model: ir.Model, *, threads: int = 0, large_bytes: int = _LARGE_BYTES) -> Iterator[Session]:
    """Yields a session on ``model``, which is not modified.

    Args:
        model: the graph.
        threads: threads inside an operator; 0 is one per core.
        large_bytes: of the weights from which on they are mapped.

    Raises:
        RuntimeRefusedError: onnxruntime does not load it.
    """
    mapped = weights_nbytes(model) >= large_bytes
    try:
        with open_graph(model, threads=threads, mapped=mapped) as session:
            yield session
    finally:
        give_memory_back()


def is_large(model: ir.Model) -> bool:
    """Returns whether the weights of a graph are mapped."""
    return weights_nbytes(model) >= _LARGE_BYTES


def unpacks(original: ir.Model) -> bool:
    """Returns whether a quantized form of ``original`` may take a float model's memory: large ones stay packed."""
    return not is_large(original)


def give_memory_back() -> None:
    """Returns freed memory to the system where its C library keeps it, as glibc does with what lies between other."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
