"""Finds the state dict in what torch.save stored, and gives its keys the names that the module uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qtool.formats.errors import FormatError

if TYPE_CHECKING:
    import torch

# Averaged weights come first: where a checkpoint has both, training evaluates these.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "params_ema",
    "shadow",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "generator",
    "backbone",
)
_DEEPEST_NESTING = 4
_LONGEST_LIST = 4
# Prefixes that DistributedDataParallel and torch.compile add to keys.
_PARALLEL_PREFIX = "module."
COMPILED_PREFIX = "_orig_mod."


# Wrapper modules of torch, and the attribute of the wrapped module.
_MODULE_WRAPPERS = {
    "AveragedModel": "module",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDict:
    """Tensors by the names in their module.

    Attributes:
        tensors: the tensors.
        source: where they were, in words.
        module: the module itself, where that was stored.
    """

    tensors: Mapping[str, torch.Tensor]
    source: str
    module: torch.nn.Module | None = None


def find_state_dict(stored: Any, where: str) -> StateDict:
    """Returns the state dict in ``stored``: itself, or under one of the keys that training scripts use.

    Args:
        stored: what torch.load returned.
        where: the file, for errors.

    Raises:
        FormatError: there is none, or several.
    """
    module = _stored_module(stored)
    if module is not None:
        tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        kind = type(module).__name__
        # Modules stored in half precision run only on GPUs. The weights do not change.
        return StateDict(tensors=tensors, source=f"whole module {kind}", module=module.float().eval())
    search = _Search(where)
    found = search.find(stored)
    keys = search.keys
    _check_names_and_kinds(found, where)
    tensors = {str(key): value.detach() for key, value in found.items() if _is_tensor(value)}
    left_out = [str(key) for key, value in found.items() if not _is_tensor(value) and _count(value) is None]
    source = "state dict" + "".join(f" under '{key}'" for key in keys[:1]) + "".join(f" / '{key}'" for key in keys[1:])
    if left_out:
        shown = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
        source += f", without non-tensors: {shown}"
    if search.aside:
        shown = ", ".join(search.aside[:_LONGEST_LIST])
        more = f" and {len(search.aside) - _LONGEST_LIST} more" if len(search.aside) > _LONGEST_LIST else ""
        source += f", leaving aside {shown}{more}"
    renamed, prefixes = _without_prefixes(tensors, where)
    if prefixes:
        source += f", prefix {' '.join(prefixes)} removed"
    return StateDict(tensors=renamed, source=source)


def _check_names_and_kinds(found: Mapping[Any, Any], where: str) -> None:
    """Rejects tensors that would be lost: those with equal names as text, such as 0 and '0', and nested ones."""
    names: set[str] = set()
    for key, value in found.items():
        if not _is_tensor(value):
            continue
        if str(key) in names:
            raise FormatError(f"{where} holds two tensors called '{key}'", fix="save them again under different names")
        if value.is_nested:
            raise FormatError(f"tensor '{key}' in {where} is nested", fix="save its parts as separate tensors")
        names.add(str(key))


def _stored_module(stored: Any) -> torch.nn.Module | None:
    """Returns the module in a trusted file: the object itself, or the preferred one of its dictionary."""
    import torch

    if isinstance(stored, Mapping):
        stored = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), torch.nn.Module)), None)
    if not isinstance(stored, torch.nn.Module):
        return None
    module = stored
    # DataParallel needs GPUs, AveragedModel takes its inputs as *args, and a compiled module cannot be exported.
    while type(module).__name__ in _MODULE_WRAPPERS and type(module).__module__.startswith("torch."):
        inner = getattr(module, _MODULE_WRAPPERS[type(module).__name__], None)
        if not isinstance(inner, torch.nn.Module):
            break
        module = inner
    return module


@dataclass(slots=True)
class _Search:
    """Follows keys to the weights.

    Attributes:
        where: the file, for errors.
        keys: the keys that led here.
        aside: skipped entries with tensors, in words.
    """

    where: str
    keys: list[Any] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)

    def find(self, stored: Any) -> Mapping[Any, Any]:
        """Returns the mapping that holds the weights themselves."""
        while True:
            if not isinstance(stored, Mapping):
                raise FormatError(
                    f"{self.where} holds a {type(stored).__name__}, not weights by name",
                    fix="save the module's weights: torch.save(module.state_dict(), path)",
                )
            key = self._inner(stored) if len(self.keys) < _DEEPEST_NESTING else None
            self._leave_aside(stored, key)
            if key is None and any(_is_tensor(value) for value in stored.values()):
                return stored
            if key is None:
                shown = ", ".join(str(name) for name in list(stored)[:8])
                raise FormatError(
                    f"{self.where} holds no tensors by name (its keys: {shown})"
                    if stored
                    else f"{self.where} holds an empty dict",
                    fix="save the module's weights: torch.save(module.state_dict(), path)",
                )
            self.keys.append(key)
            stored = stored[key]

    def _inner(self, stored: Mapping[Any, Any]) -> Any:
        """Returns the key that leads to the weights; None where they are here."""
        inside = ((key, value) for key, value in stored.items() if isinstance(value, Mapping))
        inner = {key: count for key, value in inside if (count := _count(value, named=True))}
        for key in _WRAPPERS:
            if key in inner:
                return key
        # Optimizers keep tensors under numbers, in "state"; neither they nor schedulers are weights.
        inner = {key: count for key, count in inner.items() if not _is_of_training(key)}
        # An epoch or a loss may also be a tensor.
        here = sum(value.numel() for value in stored.values() if _is_tensor(value))
        if not inner or here > sum(count.elements for count in inner.values()):
            return None
        names = [str(key) for key in inner]
        if len(inner) > 1:
            raise FormatError(
                f"{self.where} holds several dictionaries of tensors: {', '.join(names[:8])}",
                fix=f"save the one you mean: torch.save(torch.load({self.where!r})"
                f"{''.join(f'[{key!r}]' for key in (*self.keys, names[0]))}, 'weights.pth')",
            )
        return next(iter(inner))

    def _leave_aside(self, stored: Mapping[Any, Any], taken: str | None) -> None:
        for key, value in stored.items():
            count = _count(value) if key != taken and not _is_of_training(key) else None
            if count is None or (taken is None and _is_tensor(value)):
                continue
            several = "a tensor" if count.tensors == 1 else f"{count.tensors} tensors"
            self.aside.append(f"{key} ({several})")


@dataclass(frozen=True, slots=True)
class _Count:
    """Describes how many tensors there are in a part of a checkpoint, and how many numbers in these."""

    tensors: int
    elements: int


def _count(value: Any, *, named: bool = False, depth: int = 0) -> _Count | None:
    """Counts the tensors in a value, with ``named`` those that have a name; None for none."""
    if _is_tensor(value):
        return _Count(1, value.numel())
    if not isinstance(value, Mapping if named else Mapping | list | tuple) or depth >= _DEEPEST_NESTING:
        return None
    values = value.values() if isinstance(value, Mapping) else value
    counts = [count for inner in values if (count := _count(inner, named=named, depth=depth + 1))]
    if not counts:
        return None
    return _Count(sum(one.tensors for one in counts), sum(one.elements for one in counts))


def _is_of_training(key: Any) -> bool:
    return "optim" in str(key) or "sched" in str(key) or key == "state"


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def without_compiled(name: str) -> str:
    """Returns a tensor's name without what torch.compile put into it, for the module or for any block in it."""
    return name.replace(COMPILED_PREFIX, "")


def _without_prefixes(
    tensors: Mapping[str, torch.Tensor], where: str
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    prefixes: list[str] = []
    names = {name: without_compiled(name) for name in tensors}
    if any(COMPILED_PREFIX in name for name in tensors):
        prefixes.append(COMPILED_PREFIX)
    while all(name.startswith(_PARALLEL_PREFIX) for name in names.values()):
        prefixes.append(_PARALLEL_PREFIX)
        names = {old: name.removeprefix(_PARALLEL_PREFIX) for old, name in names.items()}
    renamed = {names[old]: tensor for old, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise FormatError(
            f"{where} holds weights both with and without the prefix {COMPILED_PREFIX}",
            fix="save the weights of the module itself, not of what torch.compile returned",
        )
    return renamed, tuple(prefixes)
