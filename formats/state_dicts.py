"""Finds the state dict in what torch.save stored, and gives its keys the names that the module uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats.errors import FormatError

if TYPE_CHECKING:
    import torch

# Averaged weights come first: where a checkpoint has both, they are the ones that were evaluated.
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
# What DistributedDataParallel puts before every key, and torch.compile before those of what it compiled.
_PARALLEL_PREFIX = "module."
_COMPILED_PREFIX = "_orig_mod."


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDict:
    """Holds tensors by the names that their module uses.

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
        FormatError: there is none, or nothing tells which of several it is.
    """
    module = _stored_module(stored)
    if module is not None:
        tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        kind = type(module).__name__
        # Trained in half precision, stored so, and run so nowhere but on GPUs. The weights themselves stay as they are.
        return StateDict(tensors=tensors, source=f"whole module {kind}", module=module.float().eval())
    found, keys = _unwrapped(stored, where)
    _check_names_and_kinds(found, where)
    tensors = {str(key): value.detach() for key, value in found.items() if _is_tensor(value)}
    left_out = [str(key) for key, value in found.items() if not _is_tensor(value)]
    source = "state dict" + "".join(f" under '{key}'" for key in keys[:1]) + "".join(f" / '{key}'" for key in keys[1:])
    if left_out:
        shown = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
        source += f", without what is no tensor: {shown}"
    renamed, prefixes = _without_prefixes(tensors, where)
    if prefixes:
        source += f", prefix {' '.join(prefixes)} removed"
    return StateDict(tensors=renamed, source=source)


def _check_names_and_kinds(found: Mapping[Any, Any], where: str) -> None:
    """Refuses tensors that would be lost: of one name as text, as 0 and '0' are, or of no shape."""
    names: set[str] = set()
    for key, value in found.items():
        if not _is_tensor(value):
            continue
        if str(key) in names:
            raise FormatError(
                f"{where} holds two tensors called '{key}'", fix="save them again under names of their own"
            )
        if value.is_nested:
            raise FormatError(f"tensor '{key}' in {where} is nested", fix="save its parts as tensors of their own")
        names.add(str(key))


def _stored_module(stored: Any) -> torch.nn.Module | None:
    """Returns the module in a trusted file: the object itself, or the best that its dictionary names."""
    import torch

    if isinstance(stored, Mapping):
        stored = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), torch.nn.Module)), None)
    return stored if isinstance(stored, torch.nn.Module) else None


def _unwrapped(stored: Any, where: str) -> tuple[Mapping[Any, Any], list[str]]:
    keys: list[str] = []
    while True:
        if not isinstance(stored, Mapping):
            raise FormatError(
                f"{where} holds a {type(stored).__name__}, not weights by name",
                fix="save the module's weights: torch.save(module.state_dict(), path)",
            )
        # An epoch or a loss may be a tensor, too, beside the weights.
        if any(_is_tensor(value) for value in stored.values()) and not any(
            isinstance(stored.get(key), Mapping) and _holds_tensors(stored[key]) for key in _WRAPPERS
        ):
            return stored, keys
        key = _wrapper(stored, where) if len(keys) < _DEEPEST_NESTING else None
        if key is None:
            shown = ", ".join(str(name) for name in list(stored)[:8])
            raise FormatError(
                f"{where} holds no tensors by name (its keys: {shown})" if stored else f"{where} holds an empty dict",
                fix="save the module's weights: torch.save(module.state_dict(), path)",
            )
        keys.append(key)
        stored = stored[key]


def _wrapper(stored: Mapping[Any, Any], where: str) -> str | None:
    inner = [str(key) for key, value in stored.items() if isinstance(value, Mapping) and _holds_tensors(value)]
    for key in _WRAPPERS:
        if key in inner:
            return key
    # Optimizers keep tensors under numbers, in "state"; neither they nor schedulers are weights.
    inner = [key for key in inner if "optim" not in key and "sched" not in key and key != "state"]
    if len(inner) > 1:
        raise FormatError(
            f"{where} holds several dictionaries of tensors: {', '.join(inner[:8])}",
            fix=f"save the one you mean: torch.save(torch.load({where!r})[{inner[0]!r}], 'weights.pth')",
        )
    return inner[0] if inner else None


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Mapping) and depth < _DEEPEST_NESTING:
        return any(_is_tensor(inner) or _holds_tensors(inner, depth + 1) for inner in value.values())
    return False


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _without_prefixes(
    tensors: Mapping[str, torch.Tensor], where: str
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    prefixes: list[str] = []
    names = {name: name.replace(_COMPILED_PREFIX, "") for name in tensors}
    if any(_COMPILED_PREFIX in name for name in tensors):
        prefixes.append(_COMPILED_PREFIX)
    while all(name.startswith(_PARALLEL_PREFIX) for name in names.values()):
        prefixes.append(_PARALLEL_PREFIX)
        names = {old: name.removeprefix(_PARALLEL_PREFIX) for old, name in names.items()}
    renamed = {names[old]: tensor for old, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise FormatError(
            f"{where} holds weights both with and without the prefix {_COMPILED_PREFIX}",
            fix="save the weights of the module itself, not of what torch.compile returned",
        )
    return renamed, tuple(prefixes)
