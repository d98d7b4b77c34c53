"""Audits a TensorFlow model for code and file access."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.tensorflow import keras_config, tensorflow_kinds, tensorflow_outline
from qtool.formats.tensorflow.keras_objects import foreign_objects
from qtool.formats.tensorflow.keras_weights import read_keras_weights, values_outside

# More findings are not listed.
_MOST_FINDINGS = 100


def note_tensorflow(path: Path, kind: str, notes: AuditNotes) -> None:
    """Notes objects with code and operators that access files in a model of one of ``TENSORFLOW_FORMATS``.

    Raises:
        FormatError: the model is damaged.
    """
    if kind == tensorflow_kinds.KERAS_WEIGHTS:
        _note_keras_weights(path, notes)
        return
    if kind in (tensorflow_kinds.KERAS, tensorflow_kinds.KERAS_H5):
        _note_keras(path, kind, notes)
        return
    saved = kind == tensorflow_kinds.SAVED_MODEL
    outline = (tensorflow_outline.read_saved_model if saved else tensorflow_outline.read_graph_def)(path)
    for name in outline.reaching_out:
        notes.add(Risk.REACHES_OUTSIDE, name, "reaches outside of the model when it runs")


def _note_keras(path: Path, kind: str, notes: AuditNotes) -> None:
    configs, complete = keras_config.read_configs(path, h5=kind == tensorflow_kinds.KERAS_H5)
    if not complete:
        what = "is stored in a way that is not read here, so that Keras may find another one"
        notes.add(Risk.INCONSISTENT, "configuration", what)
    found = (finding for config in configs for finding in foreign_objects(config))
    for finding in islice(found, _MOST_FINDINGS):
        notes.add(finding.risk, f"configuration, {finding.place}", finding.what)
    outside = values_outside(path, kind)
    if outside is not None:
        notes.add(Risk.REACHES_OUTSIDE, "weights", outside)


def _note_keras_weights(path: Path, notes: AuditNotes) -> None:
    outside = values_outside(path, tensorflow_kinds.KERAS_WEIGHTS)
    if outside is not None:
        notes.add(Risk.REACHES_OUTSIDE, "weights", outside)
    elif read_keras_weights(path, tensorflow_kinds.KERAS_WEIGHTS) is None:
        notes.add(Risk.INCONSISTENT, "weights", "are stored in a way that is not read here")
