"""Lists the weights of Keras files, without Keras: names, types and shapes."""

from __future__ import annotations

import mmap
import zipfile
from pathlib import Path

from qtool.formats.errors import FormatError
from qtool.formats.tensorflow.hdf5_outline import Hdf5Array, Hdf5Error, Hdf5OutsideError, read_arrays
from qtool.formats.tensorflow.tensorflow_kinds import KERAS, KERAS_WEIGHTS

_WEIGHTS = "model.weights.h5"
_LOCAL_HEADER_BYTES, _NAME_LENGTH_PLACE = 30, 26
# Groups of variables as Keras 3 names them, and attributes as Keras 2 does.
_VARIABLES = "vars"
_LIST_OF_LAYERS, _LIST_OF_WEIGHTS = b"layer_names", b"weight_names"
# Training state stored with the weights.
NO_WEIGHTS = ("optimizer", "optimizer_weights")


def read_keras_weights(path: Path, kind: str) -> list[Hdf5Array] | None:
    """Returns the weights of a ``.keras`` or ``.h5`` file; None where its HDF5 is of an unsupported kind."""
    try:
        arrays = _arrays(path, kind)
    except (Hdf5Error, zipfile.BadZipFile, KeyError):
        return None
    return [array for array in arrays if array.path and array.path[0] not in NO_WEIGHTS]


def is_keras_weights(path: Path) -> bool:
    """Returns whether an HDF5 file has the layout of ``save_weights``, including that of Keras 2."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_LIST_OF_LAYERS) >= 0 and content.find(_LIST_OF_WEIGHTS) >= 0:
            return True
    try:
        arrays = _arrays(path, KERAS_WEIGHTS)
    except Hdf5OutsideError:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_VARIABLES.encode() + b"\0") >= 0
    except Hdf5Error:
        return False
    return any(_VARIABLES in array.path for array in arrays)


def check_keras_weights(path: Path) -> None:
    """Checks that a file of weights alone refers to no other files.

    Raises:
        FormatError: it takes values from other files, or cannot be looked through.
    """
    try:
        _arrays(path, KERAS_WEIGHTS)
    except Hdf5OutsideError as error:
        raise FormatError(
            f"{path} is not safe to load: {error}", fix="where you trust it, save it again: model.save_weights(path)"
        ) from error
    except Hdf5Error as error:
        raise FormatError(
            f"{path} cannot be looked through ({error}), so it is not loaded",
            fix="save the weights again: model.save_weights(path)",
        ) from error


def values_outside(path: Path, kind: str) -> str | None:
    """Names the array of a ``.keras`` or ``.h5`` file whose values are in another file; None where there is none."""
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
    """Returns the offset of the weights in a ``.keras`` file, in which they are stored uncompressed."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        member = archive.getinfo(_WEIGHTS)
        if member.compress_type != zipfile.ZIP_STORED:
            raise Hdf5Error("compressed")
        stream.seek(member.header_offset)
        head = stream.read(_LOCAL_HEADER_BYTES)
    lengths = (head[place : place + 2] for place in (_NAME_LENGTH_PLACE, _NAME_LENGTH_PLACE + 2))
    return member.header_offset + _LOCAL_HEADER_BYTES + sum(int.from_bytes(one, "little") for one in lengths)
