"""Finds and describes folders of Hugging Face transformers that hold a decoder; nothing in them is run.

Source of the fields: https://huggingface.co/docs/transformers/main_classes/configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.errors import InputError
from qtool.formats.weights.safetensors_header import read_header
from qtool.formats.weights.sharded_index import read_index
from qtool.llm.decoder_folder import TOKENIZER_NAMES
from qtool.llm.json_files import read_json

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DOWNLOAD = "download or save the folder again"
# How the classes of decoders with a head for the next token are called.
_HEADS = ("ForCausalLM", "LMHeadModel")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_MOST_CONTEXT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceFolder:
    """A decoder of transformers: configuration, safetensors and tokenizer.

    Attributes:
        folder: where it is.
        kind: what transformers calls the architecture, such as ``llama``.
        context_length: how many positions the model is made for; None where it does not say.
        window: how many positions a layer of sliding attention sees; None where all layers see all.
        weights: the safetensors files.
        others: the index of shards, configuration and tokenizer.
    """

    folder: Path
    kind: str
    context_length: int | None
    window: int | None
    weights: tuple[Path, ...]
    others: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """The size of the weights."""
        return sum(file.stat().st_size for file in self.weights)

    def link_into(self, folder: Path) -> None:
        """Links the files that belong to the model, and nothing else of the folder, into the empty ``folder``."""
        for file in (*self.weights, *self.others):
            (folder / file.name).symlink_to(file.resolve())


def is_huggingface_folder(path: Path) -> bool:
    """Returns whether ``path`` is a folder with the configuration of transformers."""
    return path.is_dir() and (path / _CONFIG).is_file()


def find_huggingface_folder(folder: Path) -> HuggingFaceFolder:
    """Returns what ``folder`` holds; of the weights, only headers are read.

    Raises:
        InputError: it brings code of its own, holds another kind of model, or quantized or pickled weights alone.
        FormatError: a file of weights is missing or damaged.
    """
    file = folder / _CONFIG
    config = read_json(file, fix=_DOWNLOAD)
    _check_no_code(folder)
    kind, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise InputError(f"{file} names no 'model_type' and 'architectures'", fix=_DOWNLOAD)
    if len(classes) != 1 or not classes[0].endswith(_HEADS):
        raise InputError(
            f"{folder} holds {' and '.join(classes) or 'no model'}, which is no decoder of text with a head",
            fix="for other models, name the weights file and their class: --model transformers:FOLDER",
        )
    if config.get("quantization_config"):
        raise InputError(f"the weights in {folder} are quantized already", fix="start from the float model")
    weights, index = _weights(folder)
    others = [folder / name for name in (_CONFIG, *TOKENIZER_NAMES) if (folder / name).is_file()]
    return HuggingFaceFolder(
        folder=folder,
        kind=kind,
        context_length=next((found for key in _CONTEXT if (found := _positive(config, key))), None),
        window=_window(config),
        weights=weights,
        others=(*others, *([] if index is None else [index])),
    )


def _check_no_code(folder: Path) -> None:
    for name in (_CONFIG, "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file() and read_json(folder / name, fix=_DOWNLOAD).get("auto_map"):
            raise InputError(
                f"{folder / name} wants to run code of its own (auto_map), which qtool never does",
                fix="use a version of the model that transformers has itself, or remove 'auto_map' where it has it",
            )


def _weights(folder: Path) -> tuple[tuple[Path, ...], Path | None]:
    whole, index = folder / _WEIGHTS, folder / _INDEX
    if whole.is_file():
        read_header(whole)
        return (whole,), None
    if index.is_file():
        shards = tuple(read_index(index).shards)
        for shard in shards:
            read_header(shard)
        return shards, index
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pth", ".pt"))
    if pickled:
        source = next((name for name in pickled if name == "pytorch_model.bin"), pickled[0])
        raise InputError(
            f"{folder} has its weights as a pickle only ({source})",
            fix=f"convert them first: qtool convert {folder / source} --to safetensors -o {whole}",
        )
    raise InputError(f"{folder} has no weights ({_WEIGHTS})", fix=_DOWNLOAD)


def _positive(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and 0 < value <= _MOST_CONTEXT else None


def _window(config: Mapping[str, Any]) -> int | None:
    """Returns the length of sliding attention, where a layer has it."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and "sliding_attention" not in kinds:
        return None
    # Qwen's configurations give a window that most of its models do not use.
    if config.get("use_sliding_window") is False:
        return None
    return _positive(config, "sliding_window")
