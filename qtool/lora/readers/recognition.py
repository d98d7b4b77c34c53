"""Distinguishes adapters from models without loading either."""

from __future__ import annotations

from pathlib import Path

from qtool.formats.weights.safetensors_header import PREFIX_BYTES, announced_header_bytes, read_header

# Parts of keys that occur only in adapters.
_MARKS = (".lora_", ".lora.", ".hada_", ".lokr_")
_SIDE_KEYS = (".alpha", ".dora_scale")
_FLAT_BEGINNINGS = ("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")
CONFIG_NAME = "adapter_config.json"
_GGUF_HEAD = b"GGUF"


def is_adapter(path: Path) -> bool:
    """Returns whether ``path`` is a folder that PEFT saved, or the adapter's file in it."""
    if path.is_dir():
        return (path / CONFIG_NAME).is_file()
    if not path.is_file():
        return False
    named = path.name.startswith("adapter_") and (path.parent / CONFIG_NAME).is_file()
    return named or is_gguf(path) or is_single_file(path)


def is_gguf(path: Path) -> bool:
    """Returns whether a file begins with the magic bytes of GGUF."""
    with path.open("rb") as stream:
        return stream.read(len(_GGUF_HEAD)) == _GGUF_HEAD


def is_single_file(path: Path) -> bool:
    """Returns whether a file is an adapter that needs no configuration file, or whose configuration is not PEFT's."""
    if path.name == "adapter_model.safetensors" and (path.parent / CONFIG_NAME).is_file():
        return False
    with path.open("rb") as stream:
        if announced_header_bytes(stream.read(PREFIX_BYTES + 1)) is None:
            return False
    names = read_header(path).tensors
    return all(
        name.startswith(_FLAT_BEGINNINGS) or name.endswith(_SIDE_KEYS) or any(mark in name for mark in _MARKS)
        for name in names
    )
