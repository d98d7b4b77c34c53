"""Collects the changes of all adapters of a merge, by the tensors of the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.merge.base_weights import check_floats
from qtool.lora.merge.combining import combined_changes
from qtool.lora.merge.module_selection import ModuleSelection, changes_by_weight
from qtool.lora.merge.pieces import chosen_pieces
from qtool.lora.merge.tensor_merge import WeightedChange
from qtool.lora.merge.ties import once, untied
from qtool.lora.merge.translation import translated
from qtool.lora.merge.weight_targets import WeightTarget, find_targets, fits_base
from qtool.lora.methods.changes import Change, New, Replaced
from qtool.workflows.lora.request import MergeRequest

if TYPE_CHECKING:
    import torch

    from qtool.lora.readers.adapter import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChanges:
    """The changes of the base.

    Attributes:
        changes: the changes of each tensor.
        new: parameters that the base does not have.
        untied: names of tensors that are no longer tied.
    """

    changes: Mapping[str, tuple[WeightedChange, ...]]
    new: Mapping[str, torch.Tensor]
    untied: frozenset[str] = frozenset()


def planned_changes(
    request: MergeRequest,
    adapters: Sequence[Adapter],
    tensors: Mapping[str, torch.Tensor],
    tied: Mapping[str, str],
    base: Path,
) -> PlannedChanges:
    """Returns the changes of each tensor of the base, under all of its names, and the new parameters.

    Args:
        request: the weights of the adapters, and the excluded modules.
        adapters: the adapters.
        tensors: the base.
        tied: for each name of a tied tensor but the first, the first one.
        base: the base's file, for errors.

    Raises:
        UsageError: a pattern matches nothing.
        InputError: an adapter does not fit the base, the base is quantized, or changes cannot be combined.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    selection = ModuleSelection(only=request.only, exclude=request.exclude)
    fitting = [translated(adapter, shapes, base) for adapter in adapters]
    parts = chosen_pieces(fitting, request.parts, lambda adapter: fits_base(adapter, shapes))
    kept = [adapter if fits_base(adapter, shapes) else selection.without_excluded(adapter) for adapter in parts]
    gone = {module.path for adapter in parts for module in adapter.modules}
    gone -= {module.path for adapter in kept for module in adapter.modules}
    found = [_without_copies(find_targets(adapter, shapes), tensors, tied) for adapter in kept]
    taken = [[target for target in targets if selection.takes(target.module)] for targets in found]
    apart = untied(taken, kept, tensors, tied)
    tied = {name: first for name, first in tied.items() if name not in apart}
    chosen = selection.chosen_modules([target for targets in found for target in targets], gone)
    factor = -request.scale if request.unmerge else request.scale
    weighted = [
        (target, source.weight * factor)
        for targets, source in zip(found, request.adapters, strict=True)
        for target in once([target for target in targets if target.module in chosen], tied)
    ]
    new = _new_tensors(weighted, request)
    changes = changes_by_weight([item for item in weighted if item[0].weight not in new], tensors, tied)
    for name, steps in changes.items():
        if not all(isinstance(step.change, Replaced) for step in steps):
            check_floats(name, tensors[name], base)
    if request.unmerge:
        _check_reversible(changes)
    if request.combination is not None:
        changes = combined_changes(changes, request.combination)
    return PlannedChanges(changes=changes, new=new, untied=apart)


def _new_tensors(weighted: Sequence[tuple[WeightTarget, float]], request: MergeRequest) -> dict[str, torch.Tensor]:
    """Collects the parameters that the base does not have."""
    found: dict[str, torch.Tensor] = {}
    for target, weight in weighted:
        if not isinstance(target.change, New):
            continue
        fix = f"leave it out with --exclude {target.module}"
        if request.unmerge or request.combination is not None or weight != 1:
            raise InputError(f"{target.weight} is new to the base, and cannot be merged in part", fix=fix)
        if target.weight in found:
            raise InputError(f"{target.weight} is new to the base, and two adapters add it", fix=fix)
        found[target.weight] = target.change.values
    return found


def _without_copies(
    targets: Sequence[WeightTarget], tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str]
) -> list[WeightTarget]:
    """Drops tensors that only repeat the base: PEFT saves embeddings along with the matrices that change them."""
    firsts = Counter(tied.get(target.weight, target.weight) for target in targets)
    return [
        target
        for target in targets
        if firsts[tied.get(target.weight, target.weight)] == 1 or not _repeats(target.change, tensors[target.weight])
    ]


def _repeats(change: Change, tensor: torch.Tensor) -> bool:
    if not isinstance(change, Replaced) or change.indices is not None:
        return False
    return bool((change.values.to(tensor.dtype) == tensor).all())


def _check_reversible(changes: Mapping[str, Sequence[WeightedChange]]) -> None:
    for name, steps in changes.items():
        lossy = next((step.change for step in steps if not step.change.additive), None)
        if lossy is not None:
            raise InputError(
                f"{name} was changed by {lossy.kind}, and the merged weight does not determine the original",
                fix="keep the base; only additive changes can be subtracted",
            )
