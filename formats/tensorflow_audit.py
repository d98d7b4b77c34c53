"""Tells which parts of a TensorFlow model run code or reach for files when it is used."""

from __future__ import annotations

from pathlib import Path

from formats import keras_config, tensorflow_kinds, tensorflow_outline
from formats.findings import AuditNotes, Risk

# Layers of Keras that hold Python code, or build themselves from other files.
_LAYERS_WITH_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


def note_tensorflow(path: Path, kind: str, notes: AuditNotes) -> None:
    """Notes layers with code and operators that reach for files in a model of one of ``TENSORFLOW_FORMATS``.

    Raises:
        FormatError: the model is damaged.
    """
    if kind in (tensorflow_kinds.KERAS, tensorflow_kinds.KERAS_H5):
        keras = kind == tensorflow_kinds.KERAS
        layers = (keras_config.read_keras if keras else keras_config.read_keras_h5)(path).layers
        for name in _LAYERS_WITH_CODE:
            if name in layers:
                notes.add(
                    Risk.RUNS_CODE, "configuration", f"has a layer of the class {name}, which brings its own code"
                )
        return
    saved = kind == tensorflow_kinds.SAVED_MODEL
    outline = (tensorflow_outline.read_saved_model if saved else tensorflow_outline.read_graph_def)(path)
    for name in outline.reaching_out:
        notes.add(Risk.REACHES_OUTSIDE, name, "reaches outside of the model when it runs")
