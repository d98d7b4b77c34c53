"""Which tensors get Q/DQ so that a runtime runs integers: one runtime a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import onnx_ir as ir

    from qtool.plan import Plan
    from qtool.schemes import Scheme
    from qtool.selection import NodeSelection

    Place: TypeAlias = Callable[[ir.Graph, Scheme, NodeSelection, Mapping[str, str], Mapping[str, str]], Plan]

PLACEMENTS: Mapping[str, str] = {
    "onnxruntime-cpu": "qtool.backends.onnxruntime_cpu.placement:place",
    "layer-inputs": "qtool.backends.qdq_placement.layer_inputs:place",
    "every-tensor": "qtool.backends.qdq_placement.every_tensor:place",
}


def placement_of(name: str) -> Place:
    """Returns the function that plans where Q/DQ go, by its key in ``PLACEMENTS``."""
    module, _, function = PLACEMENTS[name].partition(":")
    place: Place = getattr(import_module(module), function)
    return place
