"""Maps names of an adapter's modules to those of a base with another prefix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qtool.errors import InputError

# The attribute in which torch.compile keeps the compiled module, the whole model or any block of it.
_COMPILED = "_orig_mod"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """Maps names of the adapter to names of the base by replacing a prefix.

    Attributes:
        removed: the prefix of the adapter's names.
        added: the prefix of the base's names.
        compiled: names of the base that contain torch.compile's attribute, by the names without it.
    """

    removed: str = ""
    added: str = ""
    compiled: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, name: str) -> str:
        """Returns the name in the base; one without the prefix does not change."""
        plain = _without_compiled(name)
        if plain.startswith(self.removed):
            plain = self.added + plain.removeprefix(self.removed)
        return self.compiled.get(plain, plain)


def find_renaming(modules: Sequence[str], base_names: Iterable[str], source: str) -> Renaming:
    """Finds the replacement of prefixes with which every module is in the base.

    Checkpoints of one model are stored both as ``encoder.layer.0`` and as ``bert.encoder.layer.0``.

    Args:
        modules: names of modules in the adapter.
        base_names: names of tensors in the base.
        source: the adapter, for errors.

    Raises:
        InputError: there is none, so the adapter is one for another base.
    """
    names = list(base_names)
    paths = _module_paths(map(_without_compiled, names))
    modules = [_without_compiled(module) for module in modules]
    candidates = [Renaming(), *_longer(modules, paths), *_shorter(modules)]
    for renaming in candidates:
        if all(renaming(module) in paths for module in modules):
            return replace(renaming, compiled=_compiled(names))
    # The modules missing with the best prefixes.
    best = max(candidates, key=lambda renaming: sum(renaming(module) in paths for module in modules))
    missing = next(module for module in modules if best(module) not in paths)
    near = difflib.get_close_matches(best(missing), sorted(paths), n=1)
    hint = f", the nearest is {near[0]}" if near else ""
    others = any(best(module) in paths for module in modules)
    raise InputError(
        f"{source} changes {missing}, which the base does not have{hint}: it is for another base",
        fix="name the base that the adapter was trained on; `qtool inspect` shows its name"
        + (f"; or leave this module out with --exclude {missing}" if others else ""),
    )


def _without_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _compiled(names: Iterable[str]) -> dict[str, str]:
    """Returns the names of compiled tensors and modules by their names without torch.compile's attribute."""
    found: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        if _COMPILED in parts:
            # The longest one is the module itself, without the attribute in between.
            wholes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
            found |= {_without_compiled(whole): whole for whole in wholes if _without_compiled(whole)}
    return found


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
