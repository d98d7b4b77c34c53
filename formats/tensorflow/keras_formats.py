"""The formats of Keras: ``.keras`` files, models in HDF5, and weights alone in HDF5."""

from __future__ import annotations

import mmap
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.tensorflow import tensorflow_kinds
from qtool.formats.tensorflow.hdf5_outline import HDF5_HEAD
from qtool.formats.tensorflow.keras_config import read_configs
from qtool.formats.tensorflow.keras_objects import foreign_objects
from qtool.formats.tensorflow.keras_weights import is_keras_weights, read_keras_weights, values_outside
from qtool.formats.torch.torch_zip_audit import audit_zip

_MEMBERS = frozenset({"config.json", "model.weights.h5"})
# More findings are not listed.
_MOST_FINDINGS = 100


class KerasFile:
    """Recognizes and audits ``.keras`` files."""

    holds: ClassVar[Literal["tensorflow"]] = "tensorflow"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes zip files with the members that Keras writes."""
        return Recognized("Keras model", damage=file.zip_damage) if set(file.members) >= _MEMBERS else None

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes objects with code, and what in the zip file does harm or does not add up.

        Raises:
            FormatError: the configuration is damaged, and nothing else was found.
        """
        audit_zip(path, notes)
        try:
            _note_model(path, tensorflow_kinds.KERAS, notes)
        except FormatError:
            # A damaged file that is also harmful is reported as harmful.
            if not notes.findings:
                raise


class KerasH5File:
    """Recognizes and audits Keras models in HDF5."""

    holds: ClassVar[Literal["tensorflow"]] = "tensorflow"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes HDF5 with the configuration of a model among its attributes."""
        return Recognized("Keras model in HDF5") if _is_hdf5(file) and _has_config(file.path) else None

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes objects with code, and values in other files.

        Raises:
            FormatError: the file is damaged.
        """
        _note_model(path, tensorflow_kinds.KERAS_H5, notes)


class KerasWeightsFile:
    """Recognizes and audits Keras weights in HDF5."""

    holds: ClassVar[Literal["tensorflow"]] = "tensorflow"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes HDF5 with the layout of ``save_weights``, but without the configuration of a model."""
        if not _is_hdf5(file) or _has_config(file.path) or not is_keras_weights(file.path):
            return None
        return Recognized("Keras weights in HDF5")

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes values in other files, and HDF5 that is not read here."""
        outside = values_outside(path, tensorflow_kinds.KERAS_WEIGHTS)
        if outside is not None:
            notes.add(Risk.REACHES_OUTSIDE, "weights", outside)
        elif read_keras_weights(path, tensorflow_kinds.KERAS_WEIGHTS) is None:
            notes.add(Risk.INCONSISTENT, "weights", "are stored in a way that is not read here")


def _is_hdf5(file: Candidate) -> bool:
    return file.head.startswith(HDF5_HEAD)


def _has_config(path: Path) -> bool:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"model_config") >= 0


def _note_model(path: Path, kind: str, notes: AuditNotes) -> None:
    configs, complete = read_configs(path, h5=kind == tensorflow_kinds.KERAS_H5)
    if not complete:
        what = "is stored in a way that is not read here, so that Keras may find another one"
        notes.add(Risk.INCONSISTENT, "configuration", what)
    found = (finding for config in configs for finding in foreign_objects(config))
    for finding in islice(found, _MOST_FINDINGS):
        notes.add(finding.risk, f"configuration, {finding.place}", finding.what)
    outside = values_outside(path, kind)
    if outside is not None:
        notes.add(Risk.REACHES_OUTSIDE, "weights", outside)
