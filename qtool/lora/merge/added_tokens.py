"""Resizes embeddings and heads of a base for tokens that were added before an adapter was trained.

Source: https://github.com/huggingface/peft, ``utils/save_and_load.py``: embeddings that were resized are saved whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.readers.adapter import Adapter

if TYPE_CHECKING:
    import torch

_CONFIG, _COUNT = "config.json", "vocab_size"


def added_rows(
    tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str], adapters: Sequence[Adapter]
) -> dict[str, int]:
    """Returns the new number of rows of each tensor of the base for which adapters have more rows.

    Args:
        tensors: the base.
        tied: for each name of a tied tensor but the first, the first one.
        adapters: what is merged.
    """
    found: dict[str, int] = {}
    for adapter in adapters:
        for name, values in adapter.replaced.items():
            held = [key for key in tensors if f".{key}".endswith(f".{name}") or f".{name}".endswith(f".{key}")]
            if len(held) != 1 or values.ndim == 0:
                continue
            shape = tuple(tensors[held[0]].shape)
            if values.ndim == len(shape) and tuple(values.shape[1:]) == shape[1:] and values.shape[0] > shape[0]:
                first = tied.get(held[0], held[0])
                found |= dict.fromkeys([first, *(key for key, other in tied.items() if other == first)], len(values))
    # Rows of one layer alone would be a head with more classes; a vocabulary has the same size everywhere.
    return found if len(set(found.values())) == 1 else {}


def grown(tensors: Mapping[str, torch.Tensor], rows: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Returns the tensors of ``rows`` extended with rows of zeros; tied ones stay tied."""
    import torch

    made: dict[int, torch.Tensor] = {}
    found = dict(tensors)
    for name, count in rows.items():
        tensor = tensors[name]
        key = tensor.data_ptr()
        if key not in made:
            made[key] = torch.cat([tensor, tensor.new_zeros((count - len(tensor), *tensor.shape[1:]))])
        found[name] = made[key]
    return found


def refuse_added_rows(rows: Mapping[str, int], graph: Path) -> None:
    """Passes when there are no added tokens.

    Raises:
        InputError: there are, in a graph, whose nodes may depend on the number of rows.
    """
    if rows:
        name = next(iter(rows))
        raise InputError(
            f"the adapter was trained with added tokens: it has '{name}' with {rows[name]} rows, and the graph "
            f"{graph} cannot grow",
            fix="merge into the checkpoint and export it again",
        )


def count_tokens(folder: Path, count: int) -> None:
    """Sets the vocabulary size in the configuration in ``folder`` to ``count``."""
    path = folder / _CONFIG
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(fields, dict):
        return
    inner = fields.get("text_config")
    holder = inner if isinstance(inner, dict) and _COUNT in inner else fields
    if _COUNT in holder:
        holder[_COUNT] = count
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
