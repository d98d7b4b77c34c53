"""Finds and describes decoder folders: a graph with a KV cache, ``genai_config.json`` and a tokenizer.

Source of the configuration's fields and their defaults: https://onnxruntime.ai/docs/genai/reference/config.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.errors import InputError

CONFIG_NAME = "genai_config.json"
# What transformers and onnxruntime-genai read of a tokenizer, next to the model.
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_CONVERT = "make the folder again with `qtool convert FOLDER --to onnx`"
_MOST_CONFIG_BYTES = 10_000_000
# More than any decoder has, and few enough to count through.
_MOST_LAYERS = 10_000
_MOST = 2**31 - 1
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFolder:
    """A decoder as onnxruntime-genai runs it; nothing of it is loaded.

    Caches are (batch, kv_heads, positions, head_size), one for the keys and one for the values of each layer.

    Attributes:
        folder: where it is.
        model: its graph.
        kind: what onnxruntime-genai calls the architecture, such as ``llama``.
        layers: how many layers have a cache.
        attention_heads: heads of queries.
        kv_heads: heads of keys and values.
        head_size: the length of one head.
        vocabulary: how many tokens the logits are for.
        context_length: how many tokens, prompt and answer together, the model is made for.
        bos_token: the token that texts begin with; None where there is none.
        eos_tokens: the tokens that end an answer; none where it has no end.
        pad_token: the token that fills shorter rows; None where there is none.
        input_ids: the input with the tokens, int64 (batch, length).
        attention_mask: the input with 1 for each token of cache and input, int64 (batch, all positions); None without.
        position_ids: the input with the position of each token, int64 (batch, length); None without.
        past_keys: the inputs with each layer's keys so far.
        past_values: the inputs with each layer's values so far.
        logits: the output, (batch, length, vocabulary).
        present_keys: the outputs with each layer's keys after this input.
        present_values: the outputs with each layer's values after this input.
        tokenizer: the file ``tokenizer.json``; None where the folder has none.
    """

    folder: Path
    model: Path
    kind: str
    layers: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_length: int
    bos_token: int | None
    eos_tokens: tuple[int, ...]
    pad_token: int | None
    input_ids: str
    attention_mask: str | None
    position_ids: str | None
    past_keys: tuple[str, ...]
    past_values: tuple[str, ...]
    logits: str
    present_keys: tuple[str, ...]
    present_values: tuple[str, ...]
    tokenizer: Path | None

    @property
    def config(self) -> Path:
        """The file ``genai_config.json``."""
        return self.folder / CONFIG_NAME

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer, its chat template and what belongs to them, as far as the folder has it."""
        return tuple(self.folder / name for name in TOKENIZER_NAMES if (self.folder / name).is_file())


def is_decoder_folder(path: Path) -> bool:
    """Returns whether ``path`` is meant as a decoder folder, or is a file of ONNX in one."""
    if path.is_dir():
        return (path / CONFIG_NAME).is_file()
    return path.suffix == ".onnx" and path.is_file() and (path.parent / CONFIG_NAME).is_file()


def find_decoder_folder(path: Path) -> DecoderFolder:
    """Returns what the decoder folder ``path``, or the one around the graph ``path``, says of itself.

    Only ``genai_config.json`` is read. A graph beside the one that it names is described like that one, so that a
    quantized model may stand next to its float one.

    Raises:
        InputError: there is no such folder, or it is not one of a decoder with text alone, or it contradicts itself.
    """
    if not path.exists():
        raise InputError(f"there is no folder {path}", fix="check the path")
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise InputError(f"{folder} is not a folder of a decoder: it has no {CONFIG_NAME}", fix=_CONVERT)
    config = _section(_read(file), "model", file)
    others = sorted({"encoder", "vision", "speech", "embedding"} & set(config))
    decoder = _section(config, "decoder", file)
    if others or "pipeline" in decoder:
        parts = ", ".join(others) or "a pipeline of graphs"
        raise InputError(
            f"the model of {file} has more than one graph ({parts})", fix="qtool takes decoders of text in one graph"
        )
    model = folder / _text(decoder, "filename", file) if path.is_dir() else path
    if model.parent != folder:
        raise InputError(f"{file} names a graph outside of its folder", fix="do not use it unless you trust it")
    if not model.is_file():
        raise InputError(f"{file} names a graph that is not there: {model.name}", fix=_CONVERT)
    return _described(model, config, decoder, file)


def _described(model: Path, config: Mapping[str, Any], decoder: Mapping[str, Any], file: Path) -> DecoderFolder:
    layers = _count(decoder, "num_hidden_layers", file, _MOST_LAYERS)
    heads = _count(decoder, "num_attention_heads", file)
    inputs, outputs = _section(decoder, "inputs", file), _section(decoder, "outputs", file)
    tokenizer = file.parent / "tokenizer.json"
    return DecoderFolder(
        folder=file.parent,
        model=model,
        kind=_text(config, "type", file),
        layers=layers,
        attention_heads=heads,
        kv_heads=_count(decoder, "num_key_value_heads", file),
        head_size=_count(decoder, "head_size", file),
        vocabulary=_count(config, "vocab_size", file),
        context_length=_count(config, "context_length", file),
        bos_token=_token(config, "bos_token_id", file),
        eos_tokens=_tokens(config, "eos_token_id", file),
        pad_token=_token(config, "pad_token_id", file),
        input_ids=_text(inputs, "input_ids", file),
        attention_mask=_text(inputs, "attention_mask", file) if "attention_mask" in inputs else None,
        position_ids=_text(inputs, "position_ids", file) if "position_ids" in inputs else None,
        past_keys=_names(inputs, "past_key_names", layers, file),
        past_values=_names(inputs, "past_value_names", layers, file),
        logits=_text(outputs, "logits", file),
        present_keys=_names(outputs, "present_key_names", layers, file),
        present_values=_names(outputs, "present_value_names", layers, file),
        tokenizer=tokenizer if tokenizer.is_file() else None,
    )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        if file.stat().st_size > _MOST_CONFIG_BYTES:
            raise ValueError("too large")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON", fix=_CONVERT) from error
    if not isinstance(content, dict):
        raise _wrong(file, "is no mapping")
    return content


def _section(content: Mapping[str, Any], key: str, file: Path) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise _wrong(file, f"has no section '{key}'")
    return value


def _text(content: Mapping[str, Any], key: str, file: Path) -> str:
    value = content.get(key)
    # Longer names, and those of half characters, are an error to ask the file system for.
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value.encode()) <= _LONGEST_NAME:
        raise _wrong(file, f"does not name '{key}'")
    return value


def _count(content: Mapping[str, Any], key: str, file: Path, most: int = _MOST) -> int:
    value = content.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise _wrong(file, f"has no usable '{key}'")
    return value


def _tokens(content: Mapping[str, Any], key: str, file: Path) -> tuple[int, ...]:
    value = content.get(key)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int for token in found):
        raise _wrong(file, f"has a '{key}' that is no number")
    # -1 stands for none.
    return tuple(token for token in found if token >= 0)


def _token(content: Mapping[str, Any], key: str, file: Path) -> int | None:
    return next(iter(_tokens(content, key, file)), None)


def _names(content: Mapping[str, Any], key: str, layers: int, file: Path) -> tuple[str, ...]:
    pattern = _text(content, key, file)
    if pattern.count("%d") != 1:
        raise _wrong(file, f"has a '{key}' that does not number the layers")
    return tuple(pattern.replace("%d", str(layer)) for layer in range(layers))


def _wrong(file: Path, problem: str) -> InputError:
    return InputError(f"{file} {problem}", fix=_CONVERT)
