"""Tells adapters from models without opening either."""

from __future__ import annotations

from pathlib import Path

CONFIG_NAME = "adapter_config.json"


def is_adapter(path: Path) -> bool:
    """Tells whether ``path`` is a folder that PEFT saved, or the adapter's file in it."""
    if path.is_dir():
        return (path / CONFIG_NAME).is_file()
    return path.name.startswith("adapter_") and (path.parent / CONFIG_NAME).is_file()
