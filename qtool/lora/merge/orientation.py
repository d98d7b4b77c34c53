"""Returns whether a weight has its inputs first, as Conv1D of transformers stores it, or its outputs, as Linear does.

PEFT saves one ``fan_in_fan_out`` for all layers, that of the last one it wrapped, so in models with both kinds it is
not valid for the others. Source: https://github.com/huggingface/peft, ``tuners/lora/model.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.methods.module_changes import BaseModule
from qtool.lora.readers.adapter import Adapter

if TYPE_CHECKING:
    import torch


def has_inputs_first(base: BaseModule, parameter: str, adapter: Adapter) -> bool:
    """Returns whether a square weight has its inputs first.

    Non-square weights next to it decide, by the lengths of their biases; where there are none, the settings, unless
    the adapter has layers of both kinds.

    Raises:
        InputError: it is ambiguous.
    """
    told = _told_by_neighbours(base)
    if told is not None:
        return told
    # The other layers of the adapter, by their matrices and weights of the same sizes in the base.
    kinds = {kind for module in adapter.modules if (kind := _kind(module.path, module.parts, base)) is not None}
    if kinds <= {adapter.settings.fan_in_fan_out}:
        return adapter.settings.fan_in_fan_out
    raise InputError(
        f"{base.path}.{parameter} is square, {base.source} changes layers of both Linear and Conv1D, and it is "
        "ambiguous which of them this one is",
        fix=f"leave it out with --exclude {base.path}, or merge it with the library that trained it",
    )


def _told_by_neighbours(base: BaseModule) -> bool | None:
    """Checks the weights of the same block, then those of adjacent blocks."""
    parent = base.path.rpartition(".")[0]
    while parent:
        kinds = set()
        for name, shape in base.shapes.items():
            if name.startswith(f"{parent}.") and name.endswith(".weight") and len(shape) == 2 and shape[0] != shape[1]:
                length = base.shapes.get(f"{name.removesuffix('.weight')}.bias")
                kinds |= {length == (shape[1],)} if length in ((shape[0],), (shape[1],)) else set()
        if len(kinds) == 1:
            return kinds.pop()
        if kinds:
            return None
        parent = parent.rpartition(".")[0]
    return None


def _kind(path: str, parts: Mapping[str, torch.Tensor], base: BaseModule) -> bool | None:
    if "lora_A" not in parts or "lora_B" not in parts:
        return None
    first, second = parts["lora_A"], parts["lora_B"]
    outputs_first = (second.shape[0], first.shape[1])
    if first.ndim != 2 or outputs_first[0] == outputs_first[1]:
        return None
    names = [name for name in base.shapes if f".{name}".endswith(f".{path}.weight")]
    found = {base.shapes[name] == outputs_first[::-1] for name in names}
    return found.pop() if len(found) == 1 else None
