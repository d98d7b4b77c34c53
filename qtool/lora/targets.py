"""Decides which weight each part of an adapter changes, and by which formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qtool.errors import InputError
from qtool.lora.adapter import Adapter, AdapterModule
from qtool.lora.changes import Change, Replaced
from qtool.lora.low_rank import low_rank_changes
from qtool.lora.module_changes import BaseModule, ModuleChange
from qtool.lora.names import Renaming, find_renaming

_BUILDERS: Mapping[str, Callable[[AdapterModule, BaseModule, Adapter], list[ModuleChange]]] = {
    "lora_A": low_rank_changes,
    "lora_B": low_rank_changes,
    "lora_embedding_A": low_rank_changes,
    "lora_embedding_B": low_rank_changes,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Names a weight and how it changes.

    Attributes:
        weight: the tensor's name in the base.
        module: the module's name in the base.
        change: the formula with its numbers.
    """

    weight: str
    module: str
    change: Change


def find_targets(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Target, ...]:
    """Returns every change that the adapter makes; none of its tensors is left out.

    Args:
        adapter: the adapter.
        shapes: the shapes of the base's tensors by name.

    Raises:
        InputError: the adapter is one for another base, incomplete, or does not agree with its settings.
    """
    source = str(adapter.source)
    owners = {name.rpartition(".")[0] for name in adapter.replaced} - {""}
    paths = sorted({module.path for module in adapter.modules} or owners)
    renaming = find_renaming(paths, shapes, source)
    targets = []
    for module in adapter.modules:
        base = BaseModule(path=renaming(module.path), shapes=shapes, source=source)
        targets += [
            Target(weight=change.weight, module=base.path, change=change.change)
            for change in _changes(module, base, adapter)
        ]
    return (*targets, *_replacements(adapter, shapes, renaming))


def _changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    builder = next((_BUILDERS[role] for role in module.parts if role in _BUILDERS), None)
    if builder is None:
        raise InputError(
            f"{adapter.source} holds only {', '.join(sorted(module.parts))} of {module.path}, which is nothing whole",
            fix="save the adapter again, or ask for the complete file",
        )
    return builder(module, base, adapter)


def _replacements(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], renaming: Renaming) -> list[Target]:
    targets = []
    for name, values in adapter.replaced.items():
        weight = renaming(name)
        if weight not in shapes:
            raise InputError(
                f"{adapter.source} holds '{name}', which belongs to nothing in the base",
                fix="name the base that the adapter was trained on",
            )
        if tuple(values.shape) != shapes[weight]:
            raise InputError(
                f"'{name}' in {adapter.source} has the shape {tuple(values.shape)}, and the base {shapes[weight]}",
                fix="name the base that the adapter was trained on",
            )
        targets.append(Target(weight=weight, module=weight.rpartition(".")[0], change=Replaced(values=values)))
    return targets
