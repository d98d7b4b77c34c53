"""What a decoder folder says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtool.errors import InputError
from qtool.llm.decoder_folder import find_decoder_folder, is_decoder_folder

Config = dict[str, Any]


def _config() -> Config:
    return {
        "model": {
            "type": "llama",
            "vocab_size": 96,
            "context_length": 128,
            "bos_token_id": 1,
            "eos_token_id": [2, 3],
            "decoder": {
                "filename": "model.onnx",
                "head_size": 8,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_hidden_layers": 2,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": 128},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"never read")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "genai_config.json").write_text(json.dumps(_config()))
    return tmp_path


def test_a_folder_is_described_by_its_configuration(folder: Path) -> None:
    found = find_decoder_folder(folder)
    assert found.model == folder / "model.onnx"
    assert (found.kind, found.layers, found.attention_heads, found.kv_heads, found.head_size) == ("llama", 2, 4, 2, 8)
    assert (found.vocabulary, found.context_length) == (96, 128)
    assert (found.bos_token, found.eos_tokens, found.pad_token) == (1, (2, 3), None)
    assert (found.input_ids, found.attention_mask, found.position_ids) == ("input_ids", "attention_mask", None)
    assert found.past_keys == ("past_key_values.0.key", "past_key_values.1.key")
    assert found.present_values == ("present.0.value", "present.1.value")
    assert found.tokenizer == folder / "tokenizer.json"
    assert found.tokenizer_files == (folder / "tokenizer.json",)


def test_another_graph_of_the_folder_is_described_like_the_first(folder: Path) -> None:
    other = folder / "model.int4.onnx"
    other.write_bytes(b"never read")
    assert is_decoder_folder(other)
    assert find_decoder_folder(other).model == other


def test_folders_of_other_things_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"alone")
    assert not is_decoder_folder(tmp_path)
    assert not is_decoder_folder(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"no genai_config\.json"):
        find_decoder_folder(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        find_decoder_folder(tmp_path / "missing")


def _set(*path: str, to: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        inner: Any = config
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_set("model", to=[]), "no section 'model'"),
        (_set("model", "vision", to={}), "more than one graph"),
        (_set("model", "decoder", "pipeline", to=[]), "more than one graph"),
        (_set("model", "decoder", "filename", to="../model.onnx"), "outside"),
        (_set("model", "decoder", "filename", to="/etc/passwd"), "outside"),
        (_set("model", "decoder", "filename", to=".."), "not there"),
        (_set("model", "decoder", "filename", to="other.onnx"), "not there"),
        (_set("model", "decoder", "filename", to="x" * 5000), "does not name 'filename'"),
        (_set("model", "decoder", "filename", to="\ud800"), "does not name 'filename'"),
        (_set("model", "decoder", "num_hidden_layers", to=10**12), "no usable 'num_hidden_layers'"),
        (_set("model", "decoder", "head_size", to=True), "no usable 'head_size'"),
        (_set("model", "eos_token_id", to="2"), "'eos_token_id' that is no number"),
        (_set("model", "decoder", "inputs", "past_key_names", to="past"), "does not number the layers"),
    ],
)
def test_a_contradiction_is_one_clear_error(folder: Path, change: Callable[[Config], None], problem: str) -> None:
    config = _config()
    change(config)
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=problem):
        find_decoder_folder(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_damaged_configuration_is_one_clear_error(folder: Path, content: bytes) -> None:
    (folder / "genai_config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"genai_config\.json"):
        find_decoder_folder(folder)
