"""Lists the weights of Keras files, without Keras: names, types and shapes."""

from __future__ import annotations

import zipfile
from pathlib import Path

from formats.hdf5_outline import Hdf5Array, Hdf5Error, Hdf5OutsideError, read_arrays
from formats.tensorflow_kinds import KERAS

_WEIGHTS = "model.weights.h5"
_LOCAL_HEADER_BYTES, _NAME_LENGTH_PLACE = 30, 26
# What training keeps beside the weights.
_NO_WEIGHTS = ("optimizer", "optimizer_weights")


def read_keras_weights(path: Path, kind: str) -> list[Hdf5Array] | None:
    """Returns the weights of a ``.keras`` or ``.h5`` file; None where its HDF5 is of a kind that is not read here."""
    try:
        arrays = _arrays(path, kind)
    except (Hdf5Error, zipfile.BadZipFile, KeyError):
        return None
    return [array for array in arrays if array.path and array.path[0] not in _NO_WEIGHTS]


def values_outside(path: Path, kind: str) -> str | None:
    """Says which array of a ``.keras`` or ``.h5`` file takes its values from another file; None where none is seen."""
    try:
        _arrays(path, kind)
    except Hdf5OutsideError as error:
        return str(error)
    except (Hdf5Error, zipfile.BadZipFile, KeyError):
        return None
    return None


def _arrays(path: Path, kind: str) -> list[Hdf5Array]:
    with path.open("rb") as stream:
        return read_arrays(stream, _member_place(path) if kind == KERAS else 0)


def _member_place(path: Path) -> int:
    """Returns where the weights begin in a ``.keras`` file, in which they are stored as they are."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        member = archive.getinfo(_WEIGHTS)
        if member.compress_type != zipfile.ZIP_STORED:
            raise Hdf5Error("compressed")
        stream.seek(member.header_offset)
        head = stream.read(_LOCAL_HEADER_BYTES)
    lengths = (head[place : place + 2] for place in (_NAME_LENGTH_PLACE, _NAME_LENGTH_PLACE + 2))
    return member.header_offset + _LOCAL_HEADER_BYTES + sum(int.from_bytes(one, "little") for one in lengths)
