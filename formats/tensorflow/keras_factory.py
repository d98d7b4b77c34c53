"""Builds Keras models from the user's code, and loads weights into them; needs Keras."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from qtool.formats.errors import FormatError
from qtool.formats.tensorflow.keras_weights import NO_WEIGHTS
from qtool.formats.torch.architecture import Architecture, building_any

# Keras chooses the format by the file's name: layers by position, or by a list of names as in Keras 2.
_NAME_BY_PLACES, _NAME_BY_LIST = "model.weights.h5", "weights.h5"
_LISTS = ("layer_names", "model_weights")


def model_with_weights(path: Path, factory: str, kwargs: Mapping[str, Any], code: ExitStack) -> Any:
    """Returns the model that the factory builds, with the weights of an HDF5 file in it.

    Args:
        path: the file, looked through already.
        factory: see ``qtool.formats.torch.architecture.Architecture``.
        kwargs: its arguments.
        code: keeps the factory's code imported.

    Raises:
        FormatError: there is no such code, it fails or does not build a Keras model, or the weights do not match.
    """
    import keras

    model = code.enter_context(building_any(Architecture(factory, kwargs), keras.Model, "keras.Model"))
    if not getattr(model, "inputs", None):
        raise FormatError(
            f"the model of {factory} does not declare its inputs",
            fix="let it return keras.Model(inputs, outputs), or a Sequential that begins with keras.Input",
        )
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / (_NAME_BY_LIST if _lists_layers(path) else _NAME_BY_PLACES)
        named.symlink_to(path.resolve())
        try:
            model.load_weights(str(named))
        except Exception as error:  # Keras raises many kinds of errors
            raise _unfit(factory, " ".join(str(error).replace(str(named), path.name).split())) from error
    left = _left_over(path, model)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise _unfit(factory, f"the file's {left[0]}{more} would be left out")
    return model


def _unfit(factory: str, why: str) -> FormatError:
    return FormatError(
        f"the weights do not fit the model of {factory}: {why}",
        fix="build the model that was trained; its settings can be given with --model-kwargs",
    )


def _lists_layers(path: Path) -> bool:
    import h5py

    with h5py.File(path, "r") as file:
        return _LISTS[0] in file.attrs or _LISTS[1] in file


def _left_over(path: Path, model: Any) -> list[str]:
    """Names the arrays of the file that no variable of the model holds, since Keras skips layers silently."""
    held = Counter(_fingerprint(np.asarray(variable)) for variable in model.variables)
    left = []
    for name, array in _arrays(path):
        fingerprint = _fingerprint(array)
        if held[fingerprint] == 0:
            left.append(name)
        held[fingerprint] -= 1
    return left


def _fingerprint(array: Any) -> tuple[tuple[int, ...], int]:
    # A variable of half precision rounds the file's float32 values: both are compared after rounding.
    with np.errstate(over="ignore"):
        half = array.astype(np.int64 if array.dtype.kind in "iub" else np.float16)
    return array.shape, hash(half.tobytes())


def _arrays(path: Path) -> Iterator[tuple[str, Any]]:
    import h5py

    names: list[str] = []
    with h5py.File(path, "r") as file:

        def note(name: str, item: Any) -> None:
            if (
                isinstance(item, h5py.Dataset)
                and name.partition("/")[0] not in NO_WEIGHTS
                and item.dtype.kind in "fiub"
            ):
                names.append(name)

        file.visititems(note)
        for name in names:
            yield name, file[name][()]
