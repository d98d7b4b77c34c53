"""Selects changes by the names of their modules, and joins those of several adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from qtool.errors import InputError, UsageError
from qtool.lora.merge.tensor_merge import WeightedChange
from qtool.lora.merge.weight_targets import WeightTarget
from qtool.lora.methods.changes import Replaced
from qtool.lora.readers.adapter import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSelection:
    """The modules that change.

    Attributes:
        only: patterns; empty for all modules.
        exclude: patterns of modules that do not change.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def without_excluded(self, adapter: Adapter) -> Adapter:
        """Returns the adapter without the modules that are excluded, by its own names."""
        kept = tuple(module for module in adapter.modules if not self._excludes(module.path))
        return replace(adapter, modules=kept)

    def chosen_modules(self, targets: Sequence[WeightTarget], gone: Iterable[str] = ()) -> frozenset[str]:
        """Returns the modules of ``targets`` that are to change.

        A pattern is a glob for the whole name, or for the end of it after a dot.

        Args:
            targets: what the adapters change.
            gone: modules of theirs that were left out because the base does not have them.

        Raises:
            UsageError: a pattern matches no module, or nothing is left.
        """
        modules = sorted({target.module for target in targets})
        for option, patterns in (("--only", self.only), ("--exclude", self.exclude)):
            for pattern in patterns:
                if not any(_fits(module, pattern) for module in (*modules, *gone)):
                    raise UsageError(
                        f"{option} {pattern} matches no module that the adapters change",
                        fix=f"use a pattern for names such as {modules[0]}; --dry-run lists them",
                    )
        chosen = frozenset(module for module in modules if self.takes(module))
        if not chosen:
            raise UsageError("--only and --exclude leave nothing to merge", fix="drop one of the patterns")
        return chosen

    def takes(self, module: str) -> bool:
        """Returns whether a module is to change."""
        if self._excludes(module):
            return False
        return not self.only or any(_fits(module, pattern) for pattern in self.only)

    def _excludes(self, module: str) -> bool:
        return any(_fits(module, pattern) for pattern in self.exclude)


def _fits(module: str, pattern: str) -> bool:
    return fnmatchcase(module, pattern) or fnmatchcase(module, f"*.{pattern}")


def changes_by_weight(
    targets: Sequence[tuple[WeightTarget, float]], names: Iterable[str], tied: Mapping[str, str]
) -> dict[str, tuple[WeightedChange, ...]]:
    """Collects the changes of each tensor; all names of tied tensors get the changes of any of them.

    Args:
        targets: each with the weight of its adapter.
        names: all tensors of the base.
        tied: for each name of a tied tensor but the first, the first one.

    Raises:
        InputError: changes that depend on the weight meet others on one tensor, where no sum of them is exact.
    """
    gathered: dict[str, list[WeightedChange]] = {}
    for target, weight in targets:
        held = gathered.setdefault(tied.get(target.weight, target.weight), [])
        held.append(WeightedChange(target.change, weight))
    for name, changes in gathered.items():
        _check_sum(name, changes)
    firsts = {name: tied.get(name, name) for name in names}
    return {name: tuple(gathered[first]) for name, first in firsts.items() if first in gathered}


def _check_sum(name: str, changes: Sequence[WeightedChange]) -> None:
    dependent = [item for item in changes if not item.change.additive]
    if len(changes) == 1 or not dependent:
        return
    replaced = all(isinstance(item.change, Replaced) and item.change.indices is None for item in changes)
    if replaced and abs(sum(item.weight for item in changes) - 1) < 1e-9:
        return
    raise InputError(
        f"{name} is changed by several adapters, and {dependent[0].change.kind} does not add up with others exactly",
        fix="merge one adapter after the other"
        + (", or give weights that sum to 1" if replaced else "; their order then counts"),
    )
