"""``qtool convert`` of decoders of transformers, and what comes out in onnxruntime and onnxruntime-genai."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qtool.llm.cached_feeds import DecoderInputs
from qtool.llm.decoder_folder import find_decoder_folder
from qtool.llm.exporters import EXPORTERS
from qtool.llm.generation import continuation
from qtool.runtime.session import Session
from qtool.workflows.convert.request import ConvertReport

Decoder = Callable[[str], tuple[Path, Path, ConvertReport]]

_TOKENS = 64
_MORE_EXPORTERS = ("mistral with a window", "gemma3", "gpt2")


def _kinds() -> list[Any]:
    others = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", *_MORE_EXPORTERS]
    return ["smollm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in others)]


def _genai_tokens(folder: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


@pytest.mark.parametrize("kind", _kinds())
def test_both_runtimes_say_the_tokens_that_torch_says(decoder: Decoder, kind: str) -> None:
    if kind in _MORE_EXPORTERS and importlib.util.find_spec("mobius") is None:
        pytest.skip("mobius-onnx is not installed")
    source, made, report = decoder(kind)
    from tests.llm.tiny_decoders import PROMPT, torch_tokens

    expected = torch_tokens(source, _TOKENS)
    assert len(set(expected)) > 2
    folder = find_decoder_folder(made)
    assert not set(folder.eos_tokens) & set(expected)
    session = Session(folder.model)
    inputs = DecoderInputs.of(session.inputs, session.outputs)
    assert {spec.name for spec in inputs.caches} == {*folder.past_keys, *folder.past_values}
    assert continuation(session, inputs, PROMPT, count=_TOKENS) == expected
    assert _genai_tokens(made, PROMPT, _TOKENS) == expected
    assert max(comparison.relative for comparison in report.comparisons) < 1e-4


def test_the_folder_says_what_it_is_and_brings_its_tokenizer(decoder: Decoder) -> None:
    source, made, _ = decoder("smollm")
    folder = find_decoder_folder(made)
    assert (folder.layers, folder.attention_heads, folder.kv_heads, folder.head_size) == (2, 4, 2, 16)
    assert (folder.vocabulary, folder.context_length, folder.eos_tokens) == (320, 256, (1,))
    assert (made / "chat_template.jinja").read_text() == (source / "chat_template.jinja").read_text()
    genai = pytest.importorskip("onnxruntime_genai")
    from transformers import AutoTokenizer

    text = "a lazy fox"
    expected = AutoTokenizer.from_pretrained(source).encode(text)
    assert list(genai.Tokenizer(genai.Model(str(made))).encode(text)) == expected


def test_a_tied_head_reads_the_table_and_there_is_no_second_one(decoder: Decoder) -> None:
    _, made, _ = decoder("smollm")
    graph = onnx.load(made / "model.onnx", load_external_data=False).graph
    (table,) = [one for one in graph.initializer if 320 in one.dims and 64 in one.dims]
    readers = {node.op_type for node in graph.node if table.name in node.input}
    assert list(table.dims) == [320, 64]
    assert readers == {"Gather", "Gemm"}


@pytest.mark.slow
def test_shards_are_one_model(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    from tests.llm.tiny_decoders import save_decoder

    source = save_decoder(tmp_path / "source", "smollm", max_shard_size="100KB")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    assert run("convert", source, "--to", "onnx", "-o", tmp_path / "made").code == 0
    assert find_decoder_folder(tmp_path / "made").layers == 2


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder that looks like a decoder's, with weights that nothing has to read."""
    from safetensors.numpy import save_file

    folder = tmp_path / "source"
    folder.mkdir()
    save_file({"w": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    _write_config(folder)
    return folder


def _write_config(folder: Path, **fields: Any) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **fields}
    (folder / "config.json").write_text(json.dumps(config))


def _refusal(run: Any, *arguments: Any) -> str:
    result = run("convert", *arguments)
    assert result.code == 2, result.err
    return " ".join(result.err.split())


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Net"}}, "code of its own"),
        ({"architectures": ["BertModel"]}, "no decoder of text"),
        ({"architectures": []}, "no decoder of text"),
        ({"architectures": 3}, "names no 'model_type'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ],
)
def test_what_is_no_plain_decoder_is_refused(run: Any, source: Path, fields: dict[str, Any], problem: str) -> None:
    _write_config(source, **fields)
    assert problem in _refusal(run, source, "-o", source.parent / "made")
    assert [path.name for path in source.parent.iterdir()] == ["source"]


def test_code_of_a_tokenizer_is_refused_too(run: Any, source: Path) -> None:
    (source / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tok.Net", None]}}))
    assert "code of its own" in _refusal(run, source, "-o", source.parent / "made")


def test_pickled_weights_are_refused_with_the_way_out(run: Any, source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    said = _refusal(run, source, "-o", source.parent / "made")
    assert "as a pickle only" in said
    assert "--to safetensors" in said


def test_damaged_weights_are_refused_before_anything_runs(run: Any, source: Path) -> None:
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-3])
    assert "model.safetensors" in _refusal(run, source, "-o", source.parent / "made")


def test_options_without_effect_are_named(run: Any, source: Path) -> None:
    assert "--opset has no effect" in _refusal(run, source, "--opset", "21", "-o", source.parent / "made")
    assert "--fp16" in _refusal(run, source, "--fp16", "-o", source.parent / "made")
    assert "becomes ONNX only" in _refusal(run, source, "--to", "safetensors", "-o", source.parent / "made")


def test_a_folder_with_other_things_is_never_replaced(run: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    assert "holds other things" in _refusal(run, source, "--force", "-o", tmp_path / "full")
    assert "would replace the model" in _refusal(run, source, "--force", "-o", source)
    assert (tmp_path / "full" / "letter.txt").read_text() == "dear"


def test_a_missing_package_is_named_with_its_extra(run: Any, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    hidden = {"onnxruntime_genai", "mobius"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else found(name, *rest))
    said = _refusal(run, source, "-o", source.parent / "made")
    assert "needs onnxruntime-genai" in said
    assert "qtool-onnx[llm]" in said


@pytest.mark.slow
def test_where_no_exporter_serves_each_says_why_and_nothing_is_left(run: Any, source: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    said = _refusal(run, source, "-o", source.parent / "made")
    assert all(name in said for name in EXPORTERS if not name.startswith("mobius"))
    assert [path.name for path in source.parent.iterdir()] == ["source"]
