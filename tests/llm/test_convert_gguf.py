"""``qtool convert`` of a GGUF model of the Llama kind."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.llm.cached_feeds import DecoderInputs
from qtool.llm.decoder_folder import find_decoder_folder
from qtool.llm.generation import continuation
from qtool.runtime.session import Session
from tests.llm.gguf_files import Raw, f32, q4_0, q4_1, q8_0, write_gguf

_LAYERS, _HIDDEN, _INNER, _HEADS, _KV_HEADS, _HEAD = 2, 64, 96, 4, 2, 16
_PROMPT = (7, 200, 31, 5, 90)


def _fields(tokenizer: dict[str, Any]) -> dict[str, Any]:
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "llama.block_count": _LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": _HIDDEN,
        "llama.feed_forward_length": _INNER,
        "llama.attention.head_count": _HEADS,
        "llama.attention.head_count_kv": _KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": _HEAD,
        "llama.vocab_size": len(vocabulary),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(vocabulary) - 2)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def _tensors(vocabulary: int, *, mixed: bool) -> dict[str, Raw]:
    draws = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (draws.normal(size=(rows, columns)) * 0.3).astype(np.float32)

    found = {"token_embd.weight": q8_0(matrix(vocabulary, _HIDDEN)), "output_norm.weight": f32(np.ones(_HIDDEN))}
    for layer in range(_LAYERS):
        name = f"blk.{layer}"
        values = q8_0 if mixed else q4_1
        found |= {
            f"{name}.attn_norm.weight": f32(np.ones(_HIDDEN)),
            f"{name}.ffn_norm.weight": f32(np.ones(_HIDDEN)),
            f"{name}.attn_q.weight": q4_1(matrix(_HEADS * _HEAD, _HIDDEN)),
            f"{name}.attn_k.weight": q4_1(matrix(_KV_HEADS * _HEAD, _HIDDEN)),
            f"{name}.attn_v.weight": values(matrix(_KV_HEADS * _HEAD, _HIDDEN)),
            f"{name}.attn_output.weight": q4_0(matrix(_HIDDEN, _HEADS * _HEAD)),
            f"{name}.ffn_gate.weight": q4_1(matrix(_INNER, _HIDDEN)),
            f"{name}.ffn_up.weight": q4_1(matrix(_INNER, _HIDDEN)),
            f"{name}.ffn_down.weight": q8_0(matrix(_HIDDEN, _INNER)),
        }
    return found


@pytest.fixture
def tokenizer(tmp_path: Path) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    needed = ("gguf", "onnxruntime_genai", "transformers", "accelerate")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)} (the extra llm)")
    from tests.llm.tiny_decoders import save_tokenizer

    save_tokenizer(tmp_path / "tokenizer")
    content: dict[str, Any] = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    return content


@pytest.mark.parametrize("mixed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_blocks_stay_and_logits_are_torchs(run: Any, tmp_path: Path, tokenizer: dict[str, Any], mixed: bool) -> None:
    fields = _fields(tokenizer)
    source = write_gguf(tmp_path / "tiny.gguf", fields, _tensors(fields["llama.vocab_size"], mixed=mixed))
    result = run("convert", source, "--to", "onnx", "-o", "made", "--json")
    assert result.code == 0, result.err
    assert all(one["outputs"][0]["relative"] < 1e-4 for one in result.json["comparisons"])
    folder = find_decoder_folder(tmp_path / "made")
    assert (folder.layers, folder.context_length, folder.tokenizer is not None) == (_LAYERS, 128, True)
    # Every quantized tensor is in the graph as it was in the file: nothing of it as floats.
    stored = sum(len(raw) for kind, _, raw in _tensors(fields["llama.vocab_size"], mixed=mixed).values() if kind != 0)
    floats = Session(folder.model)
    assert folder.model.stat().st_size < stored + 64_000 < 4 * stored
    said = continuation(floats, DecoderInputs.of(floats.inputs, floats.outputs), _PROMPT, count=20)
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(folder.folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=len(_PROMPT) + 20, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(np.array(_PROMPT, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    sequence = [int(token) for token in generator.get_sequence(0)[len(_PROMPT) :]]
    assert sequence == said[: len(sequence)]
    assert len(sequence) == 20 or sequence[-1] in folder.eos_tokens


def test_a_kind_that_transformers_does_not_know_is_refused(run: Any, tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    fields = {**_fields(tokenizer), "general.architecture": "unheard"}
    source = write_gguf(tmp_path / "odd.gguf", fields, {"w": q4_0(np.ones((32, 32), np.float32))})
    result = run("convert", source, "--to", "onnx", "-o", "made")
    assert result.code == 2
    assert "transformers does not read" in result.err
    assert not (tmp_path / "made").exists()


def test_adapters_and_parts_are_refused(run: Any, tmp_path: Path) -> None:
    weight = {"w": q4_0(np.ones((32, 32), np.float32))}
    for field, problem in (({"general.type": "adapter"}, "holds no model"), ({"split.count": 3}, "several parts")):
        source = write_gguf(tmp_path / "odd.gguf", {"general.architecture": "llama", **field}, weight)
        result = run("convert", source, "--to", "onnx", "-o", "made")
        assert result.code == 2
        assert problem in " ".join(result.err.split())
