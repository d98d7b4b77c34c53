"""Reads adapters with torchtune's own names, in a ``.pt`` file that holds only tensors.

Source: https://github.com/meta-pytorch/torchtune, ``convert_weights.py`` and ``modules/peft``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.formats.errors import FormatError
from qtool.formats.torch.torch_checkpoint import TorchCheckpoint
from qtool.lora.readers.adapter import Adapter, AdapterModule, check_tensors
from qtool.lora.readers.library_names import Translation
from qtool.lora.readers.recognition import CONFIG_NAME
from qtool.lora.readers.settings import AdapterSettings, settings_from_peft

if TYPE_CHECKING:
    import torch

_LAYERS = "model.layers.{}"
_NAMES = Translation(
    library="torchtune",
    names={
        "tok_embeddings": "model.embed_tokens",
        "output": "lm_head",
        **{f"layers.{{}}.attn.{name}_proj": f"{_LAYERS}.self_attn.{name}_proj" for name in "qkv"},
        "layers.{}.attn.output_proj": f"{_LAYERS}.self_attn.o_proj",
        "layers.{}.mlp.w1": f"{_LAYERS}.mlp.gate_proj",
        "layers.{}.mlp.w2": f"{_LAYERS}.mlp.down_proj",
        "layers.{}.mlp.w3": f"{_LAYERS}.mlp.up_proj",
    },
    queries="layers.{}.attn.q_proj",
    keys="layers.{}.attn.k_proj",
    models=("llama", "mistral"),
)
_PART = re.compile(r"(?P<path>.+)\.(?P<role>lora_a\.weight|lora_b\.weight|magnitude)$")
_ROLES: Mapping[str, str] = {
    "lora_a.weight": "lora_A",
    "lora_b.weight": "lora_B",
    "magnitude": "lora_magnitude_vector",
}


def read_torchtune_file(path: Path) -> Adapter | None:
    """Reads the adapter in a torch file; None where it is not such an adapter. No code in the file is run.

    Raises:
        InputError: its scale is not stored next to it, or tensors are empty or not finite.
    """
    tensors = _tensors(path)
    found = {name: _PART.match(name) for name in tensors}
    if not tensors or not all(found.values()):
        return None
    check_tensors(tensors, path)
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, part in found.items():
        if part is not None:
            modules.setdefault(part["path"], {})[_ROLES[part["role"]]] = tensors[name]
    return Adapter(
        source=path,
        settings=_settings(path),
        modules=tuple(AdapterModule(path=name, parts=parts) for name, parts in modules.items()),
        translation=_NAMES,
    )


def _tensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        return TorchCheckpoint().read(path).tensors
    except FormatError:
        # It would run code, or holds no adapter: the caller reports the error.
        return {}


def _settings(path: Path) -> AdapterSettings:
    config = path.parent / CONFIG_NAME
    try:
        fields = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} was saved by torchtune, and {config} does not give its alpha",
            fix="copy adapter_config.json next to it",
        ) from error
    if not isinstance(fields, dict):
        raise InputError(f"{config} is not a JSON object", fix="save the adapter again")
    return settings_from_peft({"peft_type": "LORA", **fields}, str(config))
