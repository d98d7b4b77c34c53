"""Maps the module names of other libraries to those of transformers, with the row order of their matrices.

In rotary embeddings, libraries differ in which numbers form a pair: adjacent ones, or those half a head apart as in
transformers. Queries and keys of both kinds differ only in the order of their rows. Sources: ``convert_weights.py`` in
https://github.com/meta-pytorch/torchtune and ``convert_hf_to_gguf.py`` in https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.readers.adapter import Adapter, AdapterModule
from qtool.lora.readers.library_names import Translation

if TYPE_CHECKING:
    import torch

_HEADS, _KEY_HEADS = "num_attention_heads", "num_key_value_heads"
# Parts of modules with one entry for each row of the weight.
_BY_ROW = ("lora_B", "lora_magnitude_vector", "lora_B.bias")


def translated(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], base: Path) -> Adapter:
    """Returns the adapter with the names and the row order of the base.

    Args:
        adapter: the adapter.
        shapes: the shapes of the base's tensors by name.
        base: the base's file, for the config.json next to it.

    Raises:
        InputError: a module has no counterpart, or the number of heads is unknown.
    """
    translation = adapter.translation
    if translation is None or all(f"{module.path}.weight" in shapes for module in adapter.modules):
        return adapter
    modules = tuple(_translated(module, translation, adapter.source, base) for module in adapter.modules)
    return replace(adapter, modules=modules, translation=None)


def _translated(module: AdapterModule, translation: Translation, source: Path, base: Path) -> AdapterModule:
    pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", module.path)
    number = re.search(r"(?<=\.)\d+(?=\.)", module.path)
    if pattern not in translation.names:
        raise InputError(
            f"{source} changes {module.path}, and no module of transformers is known for that name of "
            f"{translation.library}",
            fix="save the adapter in PEFT's format",
        )
    name = translation.names[pattern].format(number[0] if number else "")
    if pattern not in (translation.queries, translation.keys):
        return replace(module, path=name)
    heads = _heads(base, translation, source, module.path, keys=pattern == translation.keys)
    parts = {
        role: _halves(tensor, heads, module.path, source) if role in _BY_ROW else tensor
        for role, tensor in module.parts.items()
    }
    return replace(module, path=name, parts=parts)


def _heads(base: Path, translation: Translation, source: Path, module: str, *, keys: bool) -> int:
    config = base.parent / "config.json"
    try:
        fields = json.loads(config.read_bytes())
        kind, heads = fields["model_type"], fields[_HEADS]
        heads = fields.get(_KEY_HEADS) or heads if keys else heads
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"the rows of {module} in {source} are in the order of {translation.library}, and {config} does not say "
            "how many heads they belong to",
            fix="put the config.json of the base next to its weights, or save the adapter in PEFT's format",
        ) from error
    if translation.models and kind not in translation.models:
        raise InputError(
            f"the order of the rows of {module} in {source} is not known for models of the kind {kind}",
            fix="save the adapter in PEFT's format",
        )
    return heads if isinstance(heads, int) and heads > 0 else 0


def _halves(tensor: torch.Tensor, heads: int, module: str, source: Path) -> torch.Tensor:
    """Returns the rows in the order of transformers: of each head the even ones first, then the odd ones."""
    rows = tensor.shape[0]
    if heads == 0 or rows % (2 * heads):
        raise InputError(
            f"the {rows} rows of {module} in {source} do not belong to {heads} heads",
            fix="name the base that the adapter was trained on",
        )
    return tensor.reshape(heads, rows // heads // 2, 2, -1).transpose(1, 2).reshape(tensor.shape)
