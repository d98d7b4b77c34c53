"""The registry of formats; a new one is a new file and a line here.

A file is of the first format that recognizes it: those of whose files the first bytes say enough come first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qtool.formats.errors import FormatError

if TYPE_CHECKING:
    from qtool.formats.base import (
        GraphFormat,
        GraphSource,
        ProgramSource,
        TensorFlowSource,
        WeightsFormat,
        WeightsSource,
    )

    Source = GraphSource | WeightsSource | ProgramSource | TensorFlowSource

FORMATS: dict[str, str] = {
    "torch": "qtool.formats.torch.torch_checkpoint:TorchCheckpoint",
    "safetensors": "qtool.formats.weights.safetensors_file:SafetensorsFile",
    "onnx": "qtool.formats.onnx.onnx_format:OnnxFormat",
}
# Formats that are read only.
SOURCES: dict[str, str] = {
    "torchscript": "qtool.formats.torch.torchscript_file:TorchScriptFile",
    "exported": "qtool.formats.torch.exported_program_file:ExportedProgramFile",
    "gguf": "qtool.formats.weights.gguf_format:GgufFile",
    "sharded": "qtool.formats.weights.sharded_weights:ShardedWeights",
    "keras": "qtool.formats.tensorflow.keras_formats:KerasFile",
    "keras_h5": "qtool.formats.tensorflow.keras_formats:KerasH5File",
    "keras_weights": "qtool.formats.tensorflow.keras_formats:KerasWeightsFile",
    "saved_model": "qtool.formats.tensorflow.graph_formats:SavedModel",
    "graph_def": "qtool.formats.tensorflow.graph_formats:FrozenGraph",
}


def names() -> tuple[str, ...]:
    """Returns the names of all formats, in the order in which they are asked whether a file is theirs."""
    return (*FORMATS, *SOURCES)


def load_source(name: str) -> Source:
    """Returns the format called ``name``, one that can be written or not; otherwise as ``load``.

    Raises:
        FormatError: there is no such format.
    """
    if name not in SOURCES:
        return load(name)
    found: Source = _imported(SOURCES[name])
    return found


def load(name: str) -> GraphFormat | WeightsFormat:
    """Returns the format called ``name``, one that can be written.

    The attribute ``holds`` tells the kinds apart.

    Raises:
        FormatError: there is no such format.
    """
    if name not in FORMATS:
        raise FormatError(f"there is no format '{name}'", fix=f"use one of: {', '.join(FORMATS)}")
    found: GraphFormat | WeightsFormat = _imported(FORMATS[name])
    return found


def _imported(location: str) -> Any:
    module, _, attribute = location.partition(":")
    return getattr(import_module(module), attribute)()
