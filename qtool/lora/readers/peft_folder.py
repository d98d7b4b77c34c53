"""Reads adapters that PEFT saved: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.errors import InputError
from qtool.formats.weights.safetensors_file import SafetensorsFile
from qtool.lora.readers.adapter import Adapter, AdapterModule, check_tensors
from qtool.lora.readers.recognition import CONFIG_NAME
from qtool.lora.readers.settings import AdapterSettings, settings_from_peft

if TYPE_CHECKING:
    import torch

_WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLE_NAME = "adapter_model.bin"
_LARGEST_CONFIG_BYTES = 16 << 20

_PREFIX = "base_model.model."
_ROLES = (
    r"lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
    r"hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b|hada_t1|hada_t2|"
    r"lokr_w1|lokr_w1_a|lokr_w1_b|lokr_w2|lokr_w2_a|lokr_w2_b|lokr_t2|"
    r"ia3_l|vera_lambda_b|vera_lambda_d|oft_R|token_adapter\.trainable_tokens_delta|trainable_tokens_delta|"
    r"hra_u|miss_block|vblora_logits_[AB](?:_topk_indices|_topk_weights)?|lora_E|c3a_kernel|road_theta|road_alpha|"
    r"delora_A|delora_B|delora_lambda|delora_w_norm|gralora_A_general|gralora_B_general|gralora_A|gralora_B|"
    r"shira_weight|shira_indices|fourierft_spectrum|waveft_spectrum|boft_R|boft_s|randlora_lambda|"
    r"randlora_gamma|randlora_A|randlora_B|hira_A|hira_B|hira_embedding_A|hira_embedding_B"
)
# Files saved without PEFT keep the adapter's name, by default "default".
_PART = re.compile(rf"(?P<path>.+?)\.(?P<role>{_ROLES})(\.default)?(?P<leaf>\.weight|\.bias)?$")
# Prefixes of the parameters of modules that were trained whole.
_WHOLE = re.compile(r"\.(modules_to_save|ln_tuning_layers)(\.default)?\.")
_SHARED = re.compile(r"base_model\.(?P<role>vera_[AB]|randlora_[AB]|vblora_vector_bank)(\.default)?$")


def read_peft_folder(folder: Path) -> Adapter:
    """Reads the adapter in ``folder``; its tensors stay in the file until they are used.

    Raises:
        FormatError: the weights are damaged.
        InputError: a file is missing or a pickle, the settings are damaged or of a kind that cannot be merged, or
            tensors are empty, not finite, or belong to nothing.
    """
    weights = _weights_file(folder)
    settings = settings_from_peft(_config(folder / CONFIG_NAME), str(folder))
    tensors = SafetensorsFile().read(weights).tensors
    if settings.kind == "AdaLoRA":
        tensors = _without_pruned(tensors)
    check_tensors(tensors, weights)
    return _sorted_out(tensors, settings, folder)


def _weights_file(folder: Path) -> Path:
    weights = folder / _WEIGHTS_NAME
    if weights.is_file():
        return weights
    if (folder / _PICKLE_NAME).is_file():
        raise InputError(
            f"{folder / _PICKLE_NAME} is a Python pickle, and opening one can run code",
            fix=f"qtool convert {folder / _PICKLE_NAME} --to safetensors -o {weights}",
        )
    raise InputError(f"{folder} has no {_WEIGHTS_NAME}", fix="copy the whole folder that PEFT saved")


def _config(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_CONFIG_BYTES:
            raise ValueError("too large")
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON", fix="save the adapter again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} is not a JSON object", fix="save the adapter again")
    return fields


def _without_pruned(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drops the matrices of modules that AdaLoRA left no rank."""
    pruned = {
        name.removesuffix("E") for name, tensor in tensors.items() if not tensor.numel() and name.endswith(".lora_E")
    }
    return {name: tensor for name, tensor in tensors.items() if name[:-1] not in pruned}


def _sorted_out(tensors: Mapping[str, torch.Tensor], settings: AdapterSettings, folder: Path) -> Adapter:
    parts: dict[_Place, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    shared: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        common = _SHARED.match(key)
        if common is not None:
            shared[common["role"]] = tensor
            continue
        name = key.removeprefix(_PREFIX)
        part = _PART.match(name)
        if part is None:
            replaced[_plain(_WHOLE.sub(".", name))] = tensor
            continue
        role = part["role"].removeprefix("token_adapter.")
        place = _place(part["path"])
        held = parts.setdefault(place, {})
        role += ".bias" if part["leaf"] == ".bias" else ""
        if role in held:
            raise InputError(f"{folder} holds two tensors {role} of {place.path}", fix="save one adapter at a time")
        held[role] = tensor
    modules = [
        AdapterModule(path=place.path, parts=held, depth=place.depth, wrapped=place.wrapped)
        for place, held in parts.items()
    ]
    return Adapter(source=folder, settings=settings, modules=tuple(modules), replaced=replaced, shared=shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    path: str
    depth: int
    wrapped: bool


def _place(path: str) -> _Place:
    """Removes PEFT's wrapper layers from a module's name, and records their depth."""
    depth = 0
    while path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
        depth += 1
    return _Place(path=_plain(path), depth=depth, wrapped=".base_layer." in path)


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")
