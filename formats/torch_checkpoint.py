"""Reads and writes what torch.save stores, tensors only: nothing in the file is ever run."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from formats.base import Weights
from formats.errors import FormatError
from formats.state_dicts import find_state_dict
from formats.tied import ties

_UNSUPPORTED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
# Modules that no model needs and every attack uses.
_HOSTILE = frozenset({"os", "posix", "nt", "subprocess", "sys", "builtins", "shutil", "socket", "runpy", "importlib"})


class TorchCheckpoint:
    """Stores weights as ``.pth``.

    Reads state dicts, bare or inside of a checkpoint's dictionary, in the zip format and the one before torch 1.6.
    Writes bare state dicts.
    """

    holds: ClassVar[Literal["weights"]] = "weights"
    suffix: ClassVar[str] = ".pth"

    def read(self, path: Path) -> Weights:
        """Reads the state dict; tensors of the zip format stay in the file until they are used.

        Raises:
            FormatError: the file is damaged, holds no state dict, or needs code to be opened.
        """
        found = find_state_dict(_load(path), str(path))
        return Weights(tensors=found.tensors, metadata={}, source=found.source)

    def write(self, weights: Weights, path: Path) -> None:
        """Writes the tensors, tied ones once; the same weights give the same bytes. Metadata has no place in it."""
        tied = ties(weights.tensors)
        state: dict[str, torch.Tensor] = {}
        for name, tensor in weights.tensors.items():
            # torch.save stores whole storages: a view of a mapped file would take all of that file with it.
            state[name] = state[tied[name]] if name in tied else tensor.detach().clone()
        # Through a stream: given a path, torch would store its name in the file.
        with path.open("wb") as stream:
            try:
                torch.save(state, stream)
            except RuntimeError as error:
                # torch reports a full disk as a defect of its own; the cause says what happened.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise


def _load(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        globals_ = _unsafe_globals(path, str(error)) if zipped else _named_in(str(error))
        if not globals_:
            raise _damaged(path) from error
        raise _refused(path, globals_) from error
    except Exception as error:  # a damaged pickle makes torch raise nearly anything
        raise _damaged(path) from error


def _unsafe_globals(path: Path, message: str) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or _named_in(message)
    except Exception:  # noqa: BLE001 - the listing fails in as many ways as loading does
        return _named_in(message)


def _named_in(message: str) -> list[str]:
    return sorted(set(_UNSUPPORTED_GLOBAL.findall(message)))


def _refused(path: Path, globals_: list[str]) -> FormatError:
    shown = ", ".join(globals_[:4]) + (f" and {len(globals_) - 4} more" if len(globals_) > 4 else "")
    if any(name.split(".")[0] in _HOSTILE for name in globals_):
        return FormatError(
            f"{path} would run {shown} when it is opened, as an attack does; it was not opened",
            fix="do not use this file; get the weights from where you trust them",
        )
    return FormatError(
        f"{path} holds Python objects, not only tensors ({shown}), and opening those runs their code",
        fix="where you trust the file, load it with torch.load(…, weights_only=False), save its state_dict() alone "
        "with torch.save, and name what builds the module with --model",
    )


def _damaged(path: Path) -> FormatError:
    return FormatError(f"{path} is a damaged or cut torch checkpoint", fix="save or download it again")
