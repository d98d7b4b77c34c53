"""What a report calls the models it is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def display_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Returns the shortest ends of ``paths`` that tell them apart; one that is given twice is counted."""
    names: list[str] = []
    for path in paths:
        others = [other for other in paths if other != path]
        length = 1
        while length < len(path.parts) and any(_end(other, length) == _end(path, length) for other in others):
            length += 1
        name = _end(path, length)
        number = sum(before == path for before in paths[: len(names)])
        names.append(name if number == 0 else f"{name} ({number + 1})")
    return tuple(names)


def _end(path: Path, length: int) -> str:
    return "/".join(path.parts[-length:])
