"""How workflows tell that they are still at it, without printing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

Advance: TypeAlias = Callable[[int], None]


class Progress(Protocol):
    """Receives steps of long work and one-line remarks."""

    def task(self, label: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Opens a step of ``total`` units (None: unknown); call the yielded function with units done."""
        ...

    def note(self, message: str) -> None:
        """Tells the person one line, now."""
        ...

    def warn(self, message: str) -> None:
        """Warns the person, now, also when quiet."""
        ...


class Silent:
    """Drops every step and remark."""

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Advance]:
        """Yields a function that does nothing."""
        yield _drop

    def note(self, message: str) -> None:
        """Drops the remark."""

    def warn(self, message: str) -> None:
        """Drops the warning."""


SILENT: Progress = Silent()


def _drop(units: int) -> None:
    """Ignores the units done."""
