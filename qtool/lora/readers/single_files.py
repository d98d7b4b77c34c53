"""Reads adapters in one ``.safetensors`` file without a configuration file: kohya, LyCORIS, diffusers, mlx.

Sources: https://github.com/kohya-ss/sd-scripts (``networks/lora.py``), https://github.com/KohakuBlueleaf/LyCORIS,
https://huggingface.co/docs/diffusers/api/loaders/lora and https://github.com/ml-explore/mlx-lm (``tuner/lora.py``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.formats.weights.safetensors_file import SafetensorsFile
from qtool.lora.readers.adapter import Adapter, AdapterModule, check_tensors
from qtool.lora.readers.header_settings import convolution_settings, header_settings
from qtool.lora.readers.recognition import CONFIG_NAME
from qtool.lora.readers.settings import AdapterSettings

if TYPE_CHECKING:
    import torch

# Roles by the suffixes of keys: each family's names of the two matrices; all others as in PEFT.
_ENDINGS: Mapping[str, str] = {
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
    ".lora_mid.weight": "lora_mid",
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_A": "lora_A",
    ".lora_B": "lora_B",
    ".lora_a": "mlx_a",
    ".lora_b": "mlx_b",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
}
_LYCORIS = re.compile(r"\.(hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2))$")
# Prefixes of flattened names, by part of a pipeline.
_FLAT = re.compile(r"(lora_unet|lora_te\d?|lora_transformer|lycoris)_")
_PIECES: Mapping[str, str | None] = {
    "lora_unet": "unet",
    "lora_transformer": "transformer",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "lycoris": None,
}
# The roles whose first axis is the rank.
_FIRST = ("lora_A", "hada_w1_b")
_DOTTED = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def read_single_file(path: Path) -> Adapter:
    """Reads the adapter; its tensors stay in the file until they are used.

    Raises:
        FormatError: the file is damaged.
        InputError: it is not an adapter, or holds tensors that belong to none of its kinds.
    """
    weights = SafetensorsFile().read(path)
    tensors = dict(weights.tensors)
    check_tensors({name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}, path)
    modules = _by_module(tensors, path)
    flat = {module: _FLAT.match(module) for module in modules}
    if any(flat.values()) and not all(flat.values()):
        raise InputError(f"{path} holds flattened and other names", fix="save one adapter at a time")
    scale = _mlx_scale(path) if any("mlx_a" in parts for parts in modules.values()) else 1.0
    kinds = {role.partition("_")[0] for parts in modules.values() for role in parts}
    told = header_settings(weights.metadata, str(path))
    of_convolutions = convolution_settings(weights.metadata, str(path))
    found = [_module(name, parts, flat[name], scale, path) for name, parts in modules.items()]
    return Adapter(
        source=path,
        settings=AdapterSettings(kind="LoHa" if "hada" in kinds else "LoKr" if "lokr" in kinds else "LoRA"),
        modules=tuple(_with_alpha(module, told, of_convolutions, path) for module in found),
        flattened=all(flat.values()),
    )


def _module(
    name: str, parts: dict[str, torch.Tensor], flat: re.Match[str] | None, scale: float, path: Path
) -> AdapterModule:
    alpha = parts.pop("alpha", None)
    if alpha is not None and (alpha.numel() != 1 or not math.isfinite(float(alpha))):
        raise InputError(f"'{name}.alpha' in {path} is not a number", fix="save the adapter again")
    if flat is not None:
        piece, module = _PIECES.get(flat[1]), name[flat.end() :]
    else:
        piece = next((piece for piece in _DOTTED if name.startswith(f"{piece}.")), None)
        module = name if piece is None else name.removeprefix(f"{piece}.")
    return AdapterModule(
        path=module, parts=_as_peft(parts, scale), alpha=None if alpha is None else float(alpha), piece=piece
    )


def _with_alpha(
    module: AdapterModule,
    told: Mapping[str | None, AdapterSettings],
    of_convolutions: AdapterSettings | None,
    path: Path,
) -> AdapterModule:
    """Gives a module the header's alpha, where it has none of its own.

    Raises:
        InputError: its rank differs from the header's, or it is ambiguous whether it is a convolution, which has a
            separate alpha in the header.
    """
    first = next((module.parts[role] for role in _FIRST if role in module.parts), None)
    others = told.get(None) or (next(iter(told.values())) if len(told) == 1 and module.piece is None else None)
    settings = told.get(module.piece, others)
    if of_convolutions is not None and module.alpha is None and first is not None:
        if "lora_A" not in module.parts and of_convolutions != settings:
            raise InputError(
                f"the header of {path} gives convolutions a separate alpha, and it is ambiguous whether {module.path} "
                "is one",
                fix="save the adapter again, with an alpha for each module",
            )
        settings = of_convolutions if first.ndim > 2 and max(first.shape[2:]) > 1 else settings
    if module.alpha is not None or first is None or settings is None or settings.alpha is None:
        return module
    rank, expected = first.shape[0], settings.rank_of(module.path)
    if expected is not None and rank != expected:
        raise InputError(
            f"the matrices of {module.path} in {path} have the rank {rank}, and the header says {expected}",
            fix="save the adapter again",
        )
    return replace(module, alpha=settings.scale_of(module.path, rank) * rank)


def _by_module(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, dict[str, torch.Tensor]]:
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        lycoris = _LYCORIS.search(name)
        ending = lycoris[0] if lycoris else next((end for end in _ENDINGS if name.endswith(end)), None)
        if ending is None:
            raise InputError(
                f"{path} holds '{name}', which belongs to no kind of adapter that can be merged exactly",
                fix="merge it with the library that trained it, or use LoRA, LoHa or LoKr",
            )
        role = ending[1:] if lycoris else _ENDINGS[ending]
        modules.setdefault(name.removesuffix(ending), {})[role] = tensor
    return modules


def _as_peft(parts: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Returns the parts as PEFT stores them: (rank, inputs) and (outputs, rank), the scale of mlx multiplied in."""
    import torch

    found = dict(parts)
    if "mlx_a" in found and "mlx_b" in found:
        found["lora_A"], found["lora_B"] = found.pop("mlx_a").T, found.pop("mlx_b").T.double() * scale
    if "lora_mid" in found and "lora_A" in found:
        middle, first = found.pop("lora_mid").double(), found["lora_A"].double().flatten(1)
        found["lora_A"] = torch.einsum("ij...,jc->ic...", middle, first)
    return found


def _mlx_scale(path: Path) -> float:
    config = path.parent / CONFIG_NAME
    try:
        fields = json.loads(config.read_bytes())
        scale = fields["lora_parameters"]["scale"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} was saved by mlx, and {config} does not give its scale", fix="copy adapter_config.json next to it"
        ) from error
    return float(scale)
