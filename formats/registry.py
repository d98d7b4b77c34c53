"""The registry of formats; a new one is a new file and a line here.

``detect`` tells the formats that qtool comes with apart. Those that are added tell their own files: ``Recognizable``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from qtool.formats.errors import FormatError

if TYPE_CHECKING:
    from qtool.formats.base import GraphFormat, GraphSource, Recognizable, WeightsFormat, WeightsSource

FORMATS: dict[str, str] = {
    "onnx": "qtool.formats.onnx.onnx_file:OnnxFile",
    "torch": "qtool.formats.torch.torch_checkpoint:TorchCheckpoint",
    "safetensors": "qtool.formats.weights.safetensors_file:SafetensorsFile",
}
# Formats that are read only.
SOURCES: dict[str, str] = {
    "torchscript": "qtool.formats.torch.torchscript_file:TorchScriptFile",
    "exported": "qtool.formats.torch.exported_program_file:ExportedProgramFile",
    "sharded": "qtool.formats.weights.sharded_weights:ShardedWeights",
}

_TOLD_BY_DETECT = frozenset({"onnx", "torch", "safetensors", "torchscript", "exported", "sharded"})


def recognizable() -> Iterator[tuple[str, Recognizable]]:
    """Yields the formats that tell their own files, by name, those that were added last first."""
    from qtool.formats.base import Recognizable

    for name in reversed([*FORMATS, *SOURCES]):
        if name not in _TOLD_BY_DETECT:
            found = load_source(name)
            if isinstance(found, Recognizable):
                yield name, found


def load_source(name: str) -> GraphSource | WeightsSource:
    """Returns what reads the format called ``name``, one that can be written or not; otherwise as ``load``.

    Raises:
        FormatError: there is no such format.
    """
    if name not in SOURCES:
        return load(name)
    module, _, attribute = SOURCES[name].partition(":")
    found: GraphSource | WeightsSource = getattr(import_module(module), attribute)()
    return found


def load(name: str) -> GraphFormat | WeightsFormat:
    """Returns the format called ``name``; what it needs is imported now and not before.

    The attribute ``holds`` tells the two kinds apart.

    Raises:
        FormatError: there is no such format.
    """
    if name not in FORMATS:
        raise FormatError(f"there is no format '{name}'", fix=f"use one of: {', '.join(FORMATS)}")
    module, _, attribute = FORMATS[name].partition(":")
    found: GraphFormat | WeightsFormat = getattr(import_module(module), attribute)()
    return found
