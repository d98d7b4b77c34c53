"""Finds the modules of an adapter in a base whose names begin in another way."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qtool.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """Turns names of the adapter into names of the base: one prefix goes, another one comes.

    Attributes:
        removed: what names of the adapter begin with and those of the base do not.
        added: the other way round.
    """

    removed: str = ""
    added: str = ""

    def __call__(self, name: str) -> str:
        """Returns the name in the base; one without the prefix stays as it is."""
        if not name.startswith(self.removed):
            return name
        return self.added + name.removeprefix(self.removed)


def find_renaming(modules: Sequence[str], base_names: Iterable[str], source: str) -> Renaming:
    """Finds the change of prefixes after which every module is in the base.

    Checkpoints of one model are stored both as ``encoder.layer.0`` and as ``bert.encoder.layer.0``.

    Args:
        modules: names of modules in the adapter.
        base_names: names of tensors in the base.
        source: the adapter, for errors.

    Raises:
        InputError: there is none, so the adapter is one for another base.
    """
    paths = _module_paths(base_names)
    candidates = [Renaming(), *_longer(modules, paths), *_shorter(modules)]
    for renaming in candidates:
        if all(renaming(module) in paths for module in modules):
            return renaming
    # What is missing under the names that fit best.
    best = max(candidates, key=lambda renaming: sum(renaming(module) in paths for module in modules))
    missing = next(module for module in modules if best(module) not in paths)
    near = difflib.get_close_matches(best(missing), sorted(paths), n=1)
    hint = f", the nearest is {near[0]}" if near else ""
    others = any(best(module) in paths for module in modules)
    raise InputError(
        f"{source} changes {missing}, which the base does not have{hint}: it was made for another base",
        fix="name the base that the adapter was trained on; `qtool inspect` shows its name"
        + (f"; or leave this module out with --exclude {missing}" if others else ""),
    )


def _module_paths(names: Iterable[str]) -> set[str]:
    paths: set[str] = set()
    for name in names:
        parts = name.split(".")
        paths.update(".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return paths


def _longer(modules: Sequence[str], paths: set[str]) -> list[Renaming]:
    if not modules:
        return []
    # One module may be missing for another reason than its name; the first and the last rarely both are.
    ends = (modules[0], modules[-1])
    found = {path.removesuffix(module) for module in ends for path in paths if path.endswith(f".{module}")}
    return [Renaming(added=prefix) for prefix in sorted(found, key=lambda prefix: (len(prefix), prefix))]


def _shorter(modules: Sequence[str]) -> list[Renaming]:
    if not modules:
        return []
    parts = modules[0].split(".")
    return [Renaming(removed=".".join(parts[:count]) + ".") for count in range(1, len(parts))]
