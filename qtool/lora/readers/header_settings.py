"""Reads scales from the header of a ``.safetensors`` file, for adapters without a configuration file.

Sources: https://github.com/huggingface/diffusers (``loaders/lora_base.py``: one JSON text, or one entry a field, names
beginning with the part of the pipeline) and https://github.com/kohya-ss/sd-scripts (``ss_network_*``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from qtool.errors import InputError
from qtool.lora.readers.settings import AdapterSettings, settings_from_peft

_JSON_ENTRY = "lora_adapter_metadata"
_FIELDS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_KOHYA_ALPHA, _KOHYA_ARGUMENTS = "ss_network_alpha", "ss_network_args"
_TRUE = ("true", "1", "yes")


def header_settings(metadata: Mapping[str, str], where: str) -> Mapping[str | None, AdapterSettings]:
    """Returns a header's settings of each part of a pipeline; those under None apply to all others.

    Raises:
        InputError: the header is damaged, or the adapter cannot be merged exactly.
    """
    fields = {name: value for name, value in metadata.items() if name.rpartition(".")[2] in _FIELDS}
    found: dict[str | None, dict[str, Any]] = {}
    for name, value in {**{key: _value(text) for key, text in fields.items()}, **_json_entry(metadata, where)}.items():
        piece, _, field = name.rpartition(".")
        found.setdefault(piece or None, {})[field] = value
    settings = {
        piece: settings_from_peft({"peft_type": "LORA", **entries}, where)
        for piece, entries in found.items()
        if "r" in entries
    }
    kohya = _kohya(metadata, where)
    return settings if kohya is None or None in settings else {**settings, None: kohya}


def _json_entry(metadata: Mapping[str, str], where: str) -> Mapping[str, Any]:
    if _JSON_ENTRY not in metadata:
        return {}
    try:
        entries = json.loads(metadata[_JSON_ENTRY])
    except (ValueError, RecursionError) as error:
        raise _damaged(_JSON_ENTRY, where) from error
    if not isinstance(entries, dict):
        raise _damaged(_JSON_ENTRY, where)
    return entries


def _value(text: str) -> object:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text


def convolution_settings(metadata: Mapping[str, str], where: str) -> AdapterSettings | None:
    """Returns a header's settings of convolutions with kernels larger than 1, where it has separate ones.

    Without a separate alpha, kohya's own network uses 1, and LyCORIS that of the other layers.

    Raises:
        InputError: the header is damaged.
    """
    arguments = _arguments(metadata, where)
    if not {"conv_dim", "conv_alpha"} & arguments.keys():
        return None
    text = arguments.get("conv_alpha")
    if text in (None, "", "None"):
        text = metadata.get(_KOHYA_ALPHA) if "lycoris" in metadata.get("ss_network_module", "") else 1.0
    alpha = None if text in (None, "None") else _number(text, _KOHYA_ARGUMENTS, where)
    return AdapterSettings(kind="LoRA", alpha=alpha, root_scale=_roots(arguments))


def _kohya(metadata: Mapping[str, str], where: str) -> AdapterSettings | None:
    text = metadata.get(_KOHYA_ALPHA)
    if text is None or text == "None":
        return None
    alpha = _number(text, _KOHYA_ALPHA, where)
    return AdapterSettings(kind="LoRA", alpha=alpha, root_scale=_roots(_arguments(metadata, where)))


def _arguments(metadata: Mapping[str, str], where: str) -> Mapping[str, Any]:
    try:
        arguments = json.loads(metadata.get(_KOHYA_ARGUMENTS) or "{}")
    except (ValueError, RecursionError) as error:
        raise _damaged(_KOHYA_ARGUMENTS, where) from error
    return arguments if isinstance(arguments, dict) else {}


def _roots(arguments: Mapping[str, Any]) -> bool:
    return str(arguments.get("rs_lora", "")).lower() in _TRUE


def _number(text: Any, entry: str, where: str) -> float:
    try:
        number = float(text)
    except (ValueError, TypeError) as error:
        raise _damaged(entry, where) from error
    if not math.isfinite(number):
        raise _damaged(entry, where)
    return number


def _damaged(entry: str, where: str) -> InputError:
    return InputError(f"'{entry}' in the header of {where} cannot be read", fix="save the adapter again")
