"""The registry of backends; a new one is a new folder, with its targets in a module ``targets``, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from qtool.backends.base import Backend

BACKENDS: Mapping[str, str] = {
    "onnxruntime-cpu": "qtool.backends.onnxruntime_cpu.backend:BACKEND",
    "tensorrt": "qtool.backends.tensorrt.backend:BACKEND",
    "qnn": "qtool.backends.qnn.backend:BACKEND",
    "openvino": "qtool.backends.openvino.backend:BACKEND",
}
# Runs models in place of runtimes that are not here.
FALLBACK_BACKEND = "onnxruntime-cpu"


def backend_named(name: str) -> Backend:
    """Returns a backend by its key in ``BACKENDS``."""
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)
    return backend


def unfinish(model: ir.Model) -> None:
    """Undoes what the ``finish`` of any backend did to a graph, in place."""
    for name in BACKENDS:
        backend_named(name).unfinish(model)
