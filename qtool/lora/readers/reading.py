"""Reads an adapter of any supported library."""

from __future__ import annotations

from pathlib import Path

from qtool.errors import InputError
from qtool.formats.candidate import Candidate
from qtool.formats.detect import detect
from qtool.lora.readers.adapter import Adapter
from qtool.lora.readers.gguf_adapter import read_gguf_adapter
from qtool.lora.readers.peft_folder import read_peft_folder
from qtool.lora.readers.recognition import is_gguf, is_peft_folder, is_single_file
from qtool.lora.readers.single_files import read_single_file
from qtool.lora.readers.torchtune_file import read_torchtune_file


def read_adapter(path: Path) -> Adapter:
    """Reads the adapter in ``path``; its tensors stay in the file until they are used.

    Raises:
        FormatError: there is no such file, or it is damaged.
        InputError: it is a pickle, not an adapter, or cannot be merged exactly.
    """
    if path.is_dir():
        if is_peft_folder(path):
            return read_peft_folder(path)
        raise InputError(
            f"{path} has no adapter_config.json", fix="name the folder that PEFT saved, or the adapter's file"
        )
    file = Candidate.at(path)
    if is_gguf(file):
        return read_gguf_adapter(path)
    found = detect(path)
    if found.format == "torch":
        adapter = read_torchtune_file(path)
        if adapter is not None:
            return adapter
        raise InputError(
            f"{path} is a Python pickle, and opening one can run code",
            fix=f"qtool convert {path} --to safetensors -o {path.with_suffix('.safetensors')}",
        )
    if is_single_file(file):
        return read_single_file(path)
    if is_peft_folder(path.parent):
        return read_peft_folder(path.parent)
    raise InputError(
        f"{path} is {found.detail} without an adapter_config.json next to it",
        fix="copy the whole folder that PEFT saved",
    )
