"""Distinguishes adapters from models without loading either."""

from __future__ import annotations

from pathlib import Path

from qtool.formats.candidate import Candidate
from qtool.formats.errors import FormatError
from qtool.formats.weights.gguf_header import GGUF_HEAD, read_gguf_header
from qtool.formats.weights.safetensors_file import SafetensorsFile
from qtool.formats.weights.safetensors_header import read_header

# Parts of keys that occur only in adapters.
_MARKS = (".lora_", ".lora.", ".hada_", ".lokr_")
_SIDE_KEYS = (".alpha", ".dora_scale")
_FLAT_BEGINNINGS = ("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")
CONFIG_NAME = "adapter_config.json"


def is_adapter(path: Path) -> bool:
    """Returns whether ``path`` is a folder that PEFT saved, the adapter's file in it, or an adapter in one file.

    Raises:
        FormatError: the file is empty, or a damaged ``.safetensors`` file.
    """
    if path.is_dir():
        return is_peft_folder(path)
    if not path.is_file():
        return False
    named = path.name.startswith("adapter_") and is_peft_folder(path.parent)
    file = Candidate.at(path)
    return named or _is_gguf_adapter(file) or is_single_file(file)


def is_peft_folder(folder: Path) -> bool:
    """Returns whether PEFT saved an adapter in ``folder``."""
    return (folder / CONFIG_NAME).is_file()


def is_gguf(file: Candidate) -> bool:
    """Returns whether a file begins with the magic bytes of GGUF."""
    return file.head.startswith(GGUF_HEAD)


def _is_gguf_adapter(file: Candidate) -> bool:
    if not is_gguf(file):
        return False
    try:
        return read_gguf_header(file.path).fields.get("general.type") == "adapter"
    except FormatError:
        return False


def is_single_file(file: Candidate) -> bool:
    """Returns whether a file is an adapter that needs no configuration file, or whose configuration is not PEFT's.

    Raises:
        FormatError: it is a damaged ``.safetensors`` file.
    """
    if file.path.name == "adapter_model.safetensors" and is_peft_folder(file.path.parent):
        return False
    if SafetensorsFile().recognize(file) is None:
        return False
    names = read_header(file.path).tensors
    return all(
        name.startswith(_FLAT_BEGINNINGS) or name.endswith(_SIDE_KEYS) or any(mark in name for mark in _MARKS)
        for name in names
    )
