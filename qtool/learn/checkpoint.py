"""A file from which a training that was killed goes on."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qtool.atomic import staged
from qtool.errors import InputError, OutputError

SUFFIX = ".checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training keeps its state.

    Attributes:
        path: the file.
        key: tells this training from others, such as a hash of everything that it depends on.
        force: whether the file of another training may be replaced.
    """

    path: Path
    key: str
    force: bool = False

    def load(self) -> dict[str, Any] | None:
        """Returns what was saved last; None where nothing was.

        Raises:
            OutputError: the file belongs to another training.
            InputError: it cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            if self.force:
                return None
            raise InputError(f"the checkpoint {self.path} cannot be read", fix="delete it, or pass --force") from error
        if not isinstance(found, dict) or found.pop("key", None) != self.key:
            if self.force:
                return None
            raise OutputError(
                f"the checkpoint {self.path} is of another training",
                fix="end that one first, pass --force to drop it, or name another output with -o",
            )
        return found

    def save(self, state: dict[str, Any]) -> None:
        """Replaces what was saved.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        with staged(self.path) as path:
            torch.save({"key": self.key, **state}, path)

    def remove(self) -> None:
        """Deletes the file, where there is one."""
        self.path.unlink(missing_ok=True)
