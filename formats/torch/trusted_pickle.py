"""Opens pickles whose code the user has trusted: the only module that runs code from a file."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qtool.formats.containers.pickle_globals import Meaning, full_name, meaning
from qtool.formats.errors import FormatError
from qtool.formats.unreserved_mapping import mapping_unreserved


def load_trusted(path: Path, *, mmap: bool) -> Any:
    """Opens a checkpoint with everything that it imports and calls, code in the working folder included.

    Raises:
        FormatError: code that it needs is missing, or fails.
    """
    with _working_folder(), contextlib.redirect_stdout(sys.stderr):
        try:
            return _unpickled(path, mmap=mmap, reader=None)
        except (MemoryError, FormatError):
            raise
        except Exception as error:  # foreign code raises what it likes
            lines = str(error).strip().splitlines()
            raise FormatError(
                f"{path} cannot be opened: {type(error).__name__}{f': {lines[0]}' if lines else ''}",
                fix="run in the folder of the code that saved it and install what it imports; where its classes are in "
                "a script, save the state_dict() there and name the class: --model script.py:Class",
            ) from error


def load_allowed(path: Path, names: frozenset[str], *, mmap: bool) -> Any:
    """Opens a checkpoint that imports only ``names`` and the types of tensors.

    torch's own reader with weights_only=True does not fill the containers and make the objects of many classes, even of
    those that it was told to allow.

    Raises:
        FormatError: it imports more, or there is nothing of such a name.
    """
    with _working_folder():
        found = {name: _imported(name) for name in sorted(names)}

    class AllowedUnpickler(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str, /) -> Any:
            name = full_name(module_name, global_name)
            if name in found:
                return found[name]
            if meaning(name) is not Meaning.TENSOR:
                raise pickle.UnpicklingError(f"imports {name}, which is not allowed")
            return super().find_class(module_name, global_name)

    reader = types.ModuleType("allowed_pickle")
    reader.Unpickler = AllowedUnpickler  # type: ignore[attr-defined]
    reader.load = lambda stream, **options: AllowedUnpickler(stream, **options).load()  # type: ignore[attr-defined]
    try:
        return _unpickled(path, mmap=mmap, reader=reader)
    except (MemoryError, FormatError):
        raise
    except Exception as error:  # foreign classes raise what they like
        raise FormatError(
            f"{path} cannot be opened: {type(error).__name__}: {error}",
            fix="where you trust the file, open it with --trust-pickle",
        ) from error


def _unpickled(path: Path, *, mmap: bool, reader: types.ModuleType | None) -> Any:
    """Runs what the file imports and calls, as far as ``reader`` finds it; everything without one."""
    with mapping_unreserved(path):
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mmap, pickle_module=reader)


@contextlib.contextmanager
def allowing(names: frozenset[str]) -> Iterator[None]:
    """Lets torch.load import ``names`` with weights_only=True until the block ends.

    Raises:
        FormatError: there is nothing of such a name.
    """
    with _working_folder():
        allowed: list[Any] = [(_imported(name), name) for name in sorted(names)]
    if "numpy.dtype" in names:
        # What numpy.dtype makes is of a class of its own for each type of number.
        allowed += [one for name, one in vars(np.dtypes).items() if name.endswith("DType") and name != "ObjectDType"]
    with torch.serialization.safe_globals(allowed):
        yield


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise FormatError(
            f"there is no {name} to allow", fix="write --allow-global pkg.module.Class, and install the package"
        ) from error


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """Makes the working folder importable; what was imported from it stays, because the objects need it."""
    path = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = path
