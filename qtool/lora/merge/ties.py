"""Unties weights where an adapter changes only one of two tied tensors.

Models that tie their head to their embedding store both as one tensor. Only the layer that an adapter wraps computes
with the change, unless the adapter was trained with ``ensure_weight_tying``.
Source: https://github.com/huggingface/peft, ``tuners/lora/config.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.lora.merge.tensor_merge import delta_blocks
from qtool.lora.merge.weight_targets import WeightTarget
from qtool.lora.methods.changes import Change
from qtool.lora.readers.adapter import Adapter

if TYPE_CHECKING:
    import torch

_CONFIG = "config.json"
_HEAD = "lm_head"
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)
_TIE = "tie_word_embeddings"
# The largest relative difference of two equal changes: above the rounding errors of float32 products.
_SAME = 1e-5


def with_tied_head(
    tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str], config: Path, adapters: Sequence[Adapter]
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, str]]:
    """Adds the head that a configuration ties to the embedding, where files store only the embedding.

    Nothing is added where no adapter changes either of them.

    Args:
        tensors: the base.
        tied: for each name of a tied tensor but the first, the first one.
        config: of the model, next to its weights.
        adapters: what is merged.
    """
    name = f"{_HEAD}.weight"
    found = [key for key in tensors if key.endswith(EMBEDDINGS) and tensors[key].ndim == 2]
    if any(key == name or key.endswith(f".{name}") for key in tensors) or len(found) != 1 or not _ties(config):
        return tensors, tied
    ends = (_HEAD, found[0].removesuffix(".weight").rpartition(".")[2])
    if not any(f".{module.path}".endswith(f".{end}") for each in adapters for module in each.modules for end in ends):
        saved = [key for each in adapters for key in each.replaced]
        if not any(f".{key}".endswith(f".{end}.weight") for key in saved for end in ends):
            return tensors, tied
    return {**tensors, name: tensors[found[0]]}, {**tied, name: found[0]}


def untied(
    targets: Sequence[Sequence[WeightTarget]],
    adapters: Sequence[Adapter],
    tensors: Mapping[str, torch.Tensor],
    tied: Mapping[str, str],
) -> frozenset[str]:
    """Returns the names in ``tied`` that must become tensors of their own.

    Args:
        targets: what each adapter changes.
        adapters: the adapters, in the same order.
        tensors: the base.
        tied: for each name of a tied tensor but the first, the first one.
    """
    found: set[str] = set()
    for first, names in _groups(tied).items():
        for each, adapter in zip(targets, adapters, strict=True):
            changes = [[target.change for target in each if target.weight == name] for name in names]
            changed = [change for change in changes if change]
            partly = len(changed) < len(names) and not adapter.settings.keeps_ties
            if changed and (partly or not all(_same(tensors[first], changed[0], change) for change in changed[1:])):
                found |= set(names[1:])
    return frozenset(found)


def once(targets: Sequence[WeightTarget], tied: Mapping[str, str]) -> list[WeightTarget]:
    """Drops changes of a tensor under a second name, since they are the same change.

    Args:
        targets: what one adapter changes.
        tied: for each tensor that stays another name of an earlier one, the name of the first.
    """
    used: dict[str, str] = {}
    for target in targets:
        used.setdefault(tied.get(target.weight, target.weight), target.weight)
    return [target for target in targets if used[tied.get(target.weight, target.weight)] == target.weight]


def _groups(tied: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, first in tied.items():
        groups.setdefault(first, [first]).append(name)
    return groups


def untie_config(folder: Path) -> None:
    """Sets the configuration in ``folder`` to that of a model with an untied head."""
    path = folder / _CONFIG
    fields = _fields(path)
    if not _ties(path):
        return
    fields[_TIE] = False
    inner = fields.get("text_config")
    if isinstance(inner, dict) and _TIE in inner:
        inner[_TIE] = False
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _ties(config: Path) -> bool:
    fields = _fields(config)
    inner = fields.get("text_config")
    if isinstance(inner, dict) and _TIE in inner:
        return inner[_TIE] is True
    return fields.get(_TIE) is True


def _fields(config: Path) -> dict[str, Any]:
    try:
        fields = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _same(weight: torch.Tensor, changes: Sequence[Change], others: Sequence[Change]) -> bool:
    """Returns whether two changes are equal except for rounding: PEFT stores one product in two forms here."""
    added = difference = 0.0
    for one, other in zip(delta_blocks(weight, changes), delta_blocks(weight, others), strict=True):
        added += float(one.square().sum())
        difference += float((one - other).square().sum())
    return difference <= _SAME**2 * added
