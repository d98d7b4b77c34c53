"""Loads weights into a module, or reports which of them do not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qtool.formats.errors import FormatError
from qtool.formats.torch.state_dicts import COMPILED_PREFIX, without_compiled

if TYPE_CHECKING:
    import torch

_LONGEST_LIST = 3


def fit(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, factory: str) -> str | None:
    """Copies every tensor to its place in ``module``.

    A prefix that all keys share and the module lacks (``model.``, as training frameworks add it) is dropped, and one
    that only the module has, as wrappers do, is added. Where the module is one of several that were trained together,
    weights that do not have its prefix are ignored; of several that fit, the moving average is taken.

    Args:
        module: what receives the tensors.
        tensors: the weights by name.
        factory: what built the module, for errors.

    Returns:
        The change of the names, in words; None where they were right.

    Raises:
        FormatError: keys are missing or unexpected, a shape differs, or several sets of weights fit equally.
    """
    wanted = module.state_dict()
    tensors = _uncompiled(tensors, wanted)
    remark = None
    within = _under_a_prefix(tensors, wanted, factory)
    if within is not None:
        tensors, remark = within
    lacking = _lacking_prefix(tensors, wanted)
    if lacking is not None:
        remark = f"added '{lacking}' before every weight's name"
        tensors = {f"{lacking}{name}": tensor for name, tensor in tensors.items()}
    rounded = rounding(tensors, wanted)
    reshaped = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    # What has the wrong shape is left out here, so that one report names everything.
    result = module.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if name not in wanted or tensor.shape == wanted[name].shape},
        strict=False,
    )
    absent = [name for name in result.missing_keys if name not in tensors]
    missing = _without_tied(absent, wanted, tensors)
    # Buffers that the module computes itself, such as position ids, were stored by older versions of its code.
    own = {name for name, buffer in module.named_buffers() if name in tensors and buffer.shape == tensors[name].shape}
    unexpected = [name for name in tensors if name in set(result.unexpected_keys) - own]
    if missing or unexpected or reshaped:
        raise _misfit(factory, missing, unexpected, reshaped)
    return "; ".join(filter(None, (remark, rounded))) or None


def rounding(stored: Mapping[str, torch.Tensor], used: Mapping[str, torch.Tensor]) -> str | None:
    """Names the stored weights that a module rounds to narrower types, such as float64 to float32; None for none."""
    narrower = [
        name
        for name, tensor in stored.items()
        if name in used
        and tensor.is_floating_point()
        and used[name].is_floating_point()
        and tensor.dtype.itemsize > used[name].dtype.itemsize
    ]
    if not narrower:
        return None
    kinds = [str(tensors[narrower[0]].dtype).removeprefix("torch.") for tensors in (stored, used)]
    return f"rounded {len(narrower)} weights from {kinds[0]} to {kinds[1]}: {_listed(narrower)}"


def _uncompiled(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Drops what torch.compile put into names, of the whole module or of blocks, where the module is not compiled."""
    names = {name: without_compiled(name) for name in tensors}
    changed = any(old != new for old, new in names.items())
    kept = any(COMPILED_PREFIX in name for name in wanted)
    if not changed or kept or len(set(names.values())) < len(names):
        return tensors
    return {names[name]: tensor for name, tensor in tensors.items()}


def _shared_prefix(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str | None:
    """Returns the prefix that makes all names those of the module, or some of them all that the module wants."""
    if not tensors or not wanted or any(name in wanted for name in tensors):
        return None
    head = next(iter(tensors)).split(".")
    for count in range(1, len(head)):
        prefix = ".".join(head[:count]) + "."
        if all(name.startswith(prefix) and name.removeprefix(prefix) in wanted for name in tensors):
            return prefix
    last = next(iter(wanted))
    whole = [
        name.removesuffix(last)
        for name in tensors
        if name.endswith(f".{last}") and all(f"{name.removesuffix(last)}{other}" in tensors for other in wanted)
    ]
    return whole[0] if len(whole) == 1 else None


def _under_a_prefix(
    tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], factory: str
) -> tuple[Mapping[str, torch.Tensor], str] | None:
    """Returns the weights of the prefix that is meant, with their names in the module, and what to say of it."""
    prefix, rivals = _shared_prefix(tensors, wanted), _whole_sets(tensors, wanted)
    if prefix is None and len(rivals) > 1:
        averaged = [rival for rival in rivals if any("ema" in part.split("_") for part in rival.lower().split("."))]
        if len(averaged) != 1:
            raise _several(factory, rivals)
        prefix = averaged[0]
    elif prefix is None and rivals:
        prefix = rivals[0]
    if not prefix:
        return None
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if len(chosen) == len(tensors):
        return chosen, f"dropped '{prefix}' before every weight's name"
    others = [name for name in tensors if not name.startswith(prefix)]
    if len(rivals) < 2:
        return chosen, f"took the weights under '{prefix}', and left {len(others)} aside: {_listed(others)}"
    fitting = _quoted([rival for rival in rivals if rival != prefix])
    return chosen, (
        f"took the weights under '{prefix}', a moving average, and left {len(others)} aside, of which those {fitting} "
        f"fit as well: {_listed(others)}"
    )


def _whole_sets(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns the prefixes under which all is that the module wants, in its shapes; an empty one where it has none."""
    if not wanted:
        return []
    last = next(iter(wanted))
    prefixes = [name.removesuffix(last) for name in tensors if name == last or name.endswith(f".{last}")]
    return [
        prefix
        for prefix in prefixes
        if all(
            f"{prefix}{name}" in tensors and tensors[f"{prefix}{name}"].shape == tensor.shape
            for name, tensor in wanted.items()
        )
    ]


def _several(factory: str, prefixes: Sequence[str]) -> FormatError:
    named = next(prefix for prefix in prefixes if prefix)
    return FormatError(
        f"several sets of weights in the file fit {factory}, those {_quoted(prefixes)}, and the choice is ambiguous",
        fix="save one alone: torch.save({name: tensor for name, tensor in weights.items() "
        f"if name.startswith('{named}')}}, path)",
    )


def _quoted(prefixes: Sequence[str]) -> str:
    return " and ".join(f"under '{prefix}'" if prefix else "without a prefix" for prefix in prefixes)


def _lacking_prefix(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str | None:
    """Returns what the module, a wrapper, has before all names of what it wraps, where the tensors are of that."""
    head = next(iter(wanted), "").split(".")
    for count in range(1, len(head)):
        prefix = ".".join(head[:count]) + "."
        if tensors and {f"{prefix}{name}" for name in tensors} == set(wanted):
            return prefix
    return None


def _without_tied(
    missing: Sequence[str], wanted: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> list[str]:
    """Drops keys whose tensor is in memory another name of one that was given."""
    given = {wanted[name].data_ptr() for name in tensors if name in wanted and wanted[name].numel()}
    return [name for name in missing if name not in wanted or wanted[name].data_ptr() not in given]


def _misfit(factory: str, missing: Sequence[str], unexpected: Sequence[str], reshaped: Sequence[str]) -> FormatError:
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_listed([_with_nearest(name, unexpected) for name in missing])})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_listed([_with_nearest(name, missing) for name in unexpected])})")
    if reshaped:
        parts.append(f"{len(reshaped)} of another shape ({_listed(reshaped)})")
    fix = "name the factory, with its --model-kwargs, that the weights were trained with"
    if reshaped and not missing and not unexpected:
        fix = "give the sizes of the trained module with --model-kwargs"
    return FormatError(f"the weights do not fit {factory}: {', '.join(parts)}", fix=fix)


def _with_nearest(name: str, others: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    return f"{name}, nearest {near[0]}" if near else name


def _listed(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_LONGEST_LIST])
    return shown if len(names) <= _LONGEST_LIST else f"{shown}; and {len(names) - _LONGEST_LIST} more"
