"""A decoder folder in, a decoder folder out: quantize, dequantize, verify and inspect."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.llm.cached_feeds import DecoderInputs
from qtool.llm.decoder_folder import find_decoder_folder, is_decoder_folder
from qtool.llm.generation import continuation
from qtool.runtime.session import Session
from qtool.workflows.convert.request import ConvertReport
from tests.llm_report.tiny_llama import random_weights, write_folder

Decoder = Callable[[str], tuple[Path, Path, ConvertReport]]
_FOUR_BITS = ("--scheme", "weights", "--bits", "4", "--block-size", "16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A decoder folder that needs no exporter."""
    return write_folder(tmp_path / "tiny", random_weights())


def _state(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _tokens(folder: Path) -> list[int]:
    session = Session(find_decoder_folder(folder).model)
    return continuation(session, DecoderInputs.of(session.inputs, session.outputs), (3, 4, 5), count=10)


def test_a_folder_in_is_a_folder_out(run: Any, folder: Path, tmp_path: Path) -> None:
    before = _state(folder)
    result = run("quantize", folder, *_FOUR_BITS, "-o", "four")
    assert result.code == 0, result.err
    assert _state(folder) == before
    made = find_decoder_folder(tmp_path / "four")
    assert made.model.name == find_decoder_folder(folder).model.name
    assert {path.name for path in made.tokenizer_files} == {
        path.name for path in find_decoder_folder(folder).tokenizer_files
    }
    assert run("verify", "four").code == 0
    assert run("inspect", "four", "--json").json["graph"]["operators"]["com.microsoft::MatMulNBits"] > 0
    assert run("dequantize", "four", "-o", "back").code == 0
    assert is_decoder_folder(tmp_path / "back")
    assert _tokens(tmp_path / "back") == _tokens(tmp_path / "four")


def test_without_a_name_it_goes_beside_the_model(run: Any, folder: Path) -> None:
    assert run("quantize", folder, *_FOUR_BITS).code == 0
    assert is_decoder_folder(folder.with_name("tiny-quantized"))


def test_existing_folders_are_kept(run: Any, folder: Path, tmp_path: Path) -> None:
    assert run("quantize", folder, *_FOUR_BITS, "-o", "four").code == 0
    before = _state(tmp_path / "four")
    refused = run("quantize", folder, *_FOUR_BITS, "-o", "four")
    assert (refused.code, "exists already" in refused.err) == (2, True)
    assert _state(tmp_path / "four") == before
    assert run("quantize", folder, *_FOUR_BITS, "-o", "four", "--force").code == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    refused = run("quantize", folder, *_FOUR_BITS, "-o", "other", "--force")
    assert (refused.code, "holds other things" in refused.err) == (2, True)


def test_what_fails_leaves_no_folder(run: Any, folder: Path, tmp_path: Path) -> None:
    assert run("quantize", folder, *_FOUR_BITS, "--include", "nothing*", "-o", "four").code == 2
    assert run("quantize", folder, *_FOUR_BITS, "--dry-run", "-o", "four").code == 0
    assert not (tmp_path / "four").exists()


def test_a_tied_table_is_quantized_once(run: Any, decoder: Decoder, tmp_path: Path) -> None:
    _, made, _ = decoder("smollm")
    result = run("quantize", made, "--scheme", "weights", "--bits", "4", "--block-size", "32", "-o", tmp_path / "four")
    assert result.code == 0, result.err
    size = (tmp_path / "four" / "model.onnx").stat().st_size
    # Four bits and a scale in float32 for each 32 weights are a sixth of float32; the rest is the graph.
    floats = (made / "model.onnx.data").stat().st_size
    assert size < floats / 5 + 30_000
    found = run("inspect", tmp_path / "four", "--json").json["graph"]["operators"]
    assert (found["com.microsoft::GatherBlockQuantized"], found.get("Gemm", 0)) == (1, 0)


def test_quantized_decoders_run_in_onnxruntime_genai(run: Any, decoder: Decoder, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    _, made, _ = decoder("smollm")
    four = ("--scheme", "weights", "--bits", "8", "--block-size", "32", "-o", tmp_path / "eight")
    assert run("quantize", made, *four).code == 0
    model = genai.Model(str(tmp_path / "eight"))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=13, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(np.array([3, 4, 5], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert [int(token) for token in generator.get_sequence(0)[3:]] == _tokens(tmp_path / "eight")
