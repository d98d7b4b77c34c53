"""Maps each part of an adapter to the weight that it changes, and to its formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.merge.names import find_renaming
from qtool.lora.methods.boft import turned_changes
from qtool.lora.methods.c3a import circulant_changes
from qtool.lora.methods.changes import Change, Dora, New, Replaced
from qtool.lora.methods.fourierft import frequency_changes
from qtool.lora.methods.gralora import granular_changes
from qtool.lora.methods.hira import modulated_changes
from qtool.lora.methods.hra import reflected_changes
from qtool.lora.methods.ia3_oft import rotated_changes, scaled_changes
from qtool.lora.methods.loha_lokr_vera import hadamard_changes, kronecker_changes, vera_changes
from qtool.lora.methods.lora import low_rank_changes
from qtool.lora.methods.miss import shard_changes
from qtool.lora.methods.module_changes import BaseModule, ModuleChange
from qtool.lora.methods.road import paired_changes
from qtool.lora.methods.shira_waveft import sparse_changes, wave_changes
from qtool.lora.methods.target_parameters import parameter_changes
from qtool.lora.methods.trainable_tokens import token_changes
from qtool.lora.methods.vblora_delora_adalora_randlora import bank_changes, bounded_changes, random_bases_changes
from qtool.lora.readers.adapter import Adapter, AdapterModule
from qtool.lora.readers.flat_names import unflattened

if TYPE_CHECKING:
    import torch

# LyCORIS stores these norms with the matrices of any of its kinds.
_MAGNITUDE = "dora_scale"
# By the prefixes of their roles.
_BUILDERS: Mapping[str, Callable[[AdapterModule, BaseModule, Adapter], list[ModuleChange]]] = {
    "lora_": low_rank_changes,
    "hada_": hadamard_changes,
    "lokr_": kronecker_changes,
    "vera_": vera_changes,
    "ia3_": scaled_changes,
    "oft_": rotated_changes,
    "trainable_": token_changes,
    "hra_": reflected_changes,
    "miss_": shard_changes,
    "vblora_": bank_changes,
    "delora_": bounded_changes,
    "c3a_": circulant_changes,
    "road_": paired_changes,
    "gralora_": granular_changes,
    "shira_": sparse_changes,
    "fourierft_": frequency_changes,
    "waveft_": wave_changes,
    "boft_": turned_changes,
    "randlora_": random_bases_changes,
    "hira_": modulated_changes,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightTarget:
    """A weight and its change.

    Attributes:
        weight: the tensor's name in the base.
        module: the module's name in the base.
        change: the formula with its numbers.
    """

    weight: str
    module: str
    change: Change


def find_targets(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> tuple[WeightTarget, ...]:
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
    renaming = _naming(adapter, paths, shapes)
    targets = []
    for path, modules in _by_path(adapter.modules).items():
        base = BaseModule(path=renaming(path), shapes=shapes, source=source)
        if adapter.settings.parameters_of(path):
            changes = parameter_changes(modules, base, adapter)
        else:
            changes = [change for module in modules for change in _changes(module, base, adapter)]
        targets += [WeightTarget(weight=change.weight, module=base.path, change=change.change) for change in changes]
    return (*targets, *_replacements(adapter, shapes, renaming))


def _naming(adapter: Adapter, paths: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str], str]:
    if adapter.flattened:
        return unflattened(paths, shapes, str(adapter.source)).__getitem__
    return find_renaming(paths, shapes, str(adapter.source))


def _by_path(modules: Sequence[AdapterModule]) -> dict[str, list[AdapterModule]]:
    found: dict[str, list[AdapterModule]] = {}
    for module in modules:
        found.setdefault(module.path, []).append(module)
    return found


def _changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    magnitude = module.parts.get(_MAGNITUDE)
    parts = {role: tensor for role, tensor in module.parts.items() if role != _MAGNITUDE}
    first = next(iter(parts), "")
    builder = next((builder for start, builder in _BUILDERS.items() if first.startswith(start)), None)
    if builder is None:
        raise InputError(
            f"{adapter.source} holds {', '.join(module.parts) or 'an alpha'} of {module.path} without its matrices",
            fix="save the adapter again; the file is not complete",
        )
    changes = builder(replace(module, parts=parts), base, adapter)
    if magnitude is None:
        return changes
    return [_with_norms(change, magnitude, base) for change in changes]


def _with_norms(change: ModuleChange, magnitude: torch.Tensor, base: BaseModule) -> ModuleChange:
    """Adds the norms that LyCORIS trained to a change: of outputs or of inputs, by their shape."""
    parameter = change.weight.rpartition(".")[2]
    shape, count = base.shape(parameter), magnitude.numel()
    if magnitude.shape[0] == count == shape[0]:
        axis = 0
    elif len(shape) > 1 and magnitude.ndim > 1 and magnitude.shape[1] == count == shape[1]:
        axis = 1
    else:
        raise base.misfit(parameter, f"{_MAGNITUDE} has the shape {tuple(magnitude.shape)}")
    kind = "DoRA" if change.change.kind == "LoRA" else f"{change.change.kind} with DoRA"
    return ModuleChange(change.weight, Dora(product=change.change, magnitude=magnitude, axis=axis, kind=kind))


def fits_base(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Returns whether the base has all modules that an adapter changes."""
    try:
        _naming(adapter, sorted({module.path for module in adapter.modules}), shapes)
    except InputError:
        return False
    return True


def _replacements(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], renaming: Callable[[str], str]
) -> list[WeightTarget]:
    targets = []
    for name, values in adapter.replaced.items():
        weight = renaming(name)
        if weight not in shapes and adapter.settings.saves(name):
            targets.append(WeightTarget(weight=weight, module=weight.rpartition(".")[0], change=New(values=values)))
            continue
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
        targets.append(WeightTarget(weight=weight, module=weight.rpartition(".")[0], change=Replaced(values=values)))
    return targets
