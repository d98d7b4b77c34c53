"""Opens pickles whose code a person has allowed: the only place that runs what a file brings."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from formats.errors import FormatError


def load_trusted(path: Path, *, mmap: bool) -> Any:
    """Opens a checkpoint with everything that it imports and calls, code in the working folder included.

    Raises:
        FormatError: code that it needs is missing, or fails.
    """
    with _working_folder(), contextlib.redirect_stdout(sys.stderr):
        try:
            return torch.load(path, map_location="cpu", weights_only=False, mmap=mmap)
        except MemoryError:
            raise
        except Exception as error:  # foreign code raises what it likes
            lines = str(error).strip().splitlines()
            raise FormatError(
                f"{path} cannot be opened: {type(error).__name__}{f': {lines[0]}' if lines else ''}",
                fix="run in the folder of the code that saved it and install what it imports; where its classes are in "
                "a script, save the state_dict() there and name the class: --model script.py:Class",
            ) from error


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
