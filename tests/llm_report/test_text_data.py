"""Text as calibration data: rows of tokens, and empty caches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qtool.calib.dataset import open_dataset
from qtool.calib.datasets.text_file import TextOptions
from qtool.calib.errors import CalibError
from qtool.calib.specs import TensorSpec
from qtool.runtime.session import Session
from qtool.workflows.quantize.data_request import DataRequest
from tests.llm_report.tiny_llama import HEAD, KV_HEADS, WORDS, decoder, random_text, random_weights, write_tokenizer

IDS = TensorSpec("input_ids", np.dtype(np.int64), ("batch", "length"))


def _tokens(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(random_text(50), encoding="utf-8")
    return path


def test_rows_are_consecutive_and_the_rest_is_told(tmp_path: Path, words: Path) -> None:
    remarks: list[str] = []
    data = open_dataset(str(words), text=TextOptions(tokenizer=write_tokenizer(tmp_path / "t.json"), tokens=16))
    feeds = list(data.feeds([IDS], batch_size=2, remark=remarks.append))
    found = np.concatenate([feed["input_ids"] for feed in feeds])
    assert data.count == 3
    assert [feed["input_ids"].shape for feed in feeds] == [(2, 16), (1, 16)]
    assert found.reshape(-1).tolist() == _tokens(words.read_text())[:48]
    assert remarks == ["the last 2 of 50 tokens of words.txt do not fill a row and are left out"]


def test_what_the_tokenizer_puts_before_a_text_stands_before_each_row(tmp_path: Path, words: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "t.json", begins=True)
    data = open_dataset(str(words), text=TextOptions(tokenizer=tokenizer, tokens=11))
    rows = [feed["input_ids"][0].tolist() for feed in data.feeds([IDS])]
    tokens = _tokens(words.read_text())
    assert rows == [[1, *tokens[first : first + 10]] for first in range(0, 50, 10)]


def test_skipped_and_limited_rows(tmp_path: Path, words: Path) -> None:
    data = open_dataset(str(words), text=TextOptions(tokenizer=write_tokenizer(tmp_path / "t.json"), tokens=10))
    rows = [feed["input_ids"] for feed in data.feeds([IDS], skip=1, limit=2)]
    assert np.concatenate(rows).reshape(-1).tolist() == _tokens(words.read_text())[10:30]


def test_masks_positions_and_segments_are_made(tmp_path: Path, words: Path) -> None:
    data = open_dataset(str(words), text=TextOptions(tokenizer=write_tokenizer(tmp_path / "t.json"), tokens=5))
    names = {"attention_mask": np.float32, "position_ids": np.int32, "token_type_ids": np.int64}
    others = [TensorSpec(name, np.dtype(dtype), (None, None)) for name, dtype in names.items()]
    feed = next(data.feeds([IDS, *others], batch_size=2))
    assert feed["attention_mask"].tolist() == [[1.0] * 5] * 2
    assert feed["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert feed["token_type_ids"].tolist() == [[0] * 5] * 2
    assert {name: feed[name].dtype for name in names} == {name: np.dtype(dtype) for name, dtype in names.items()}


def test_a_text_shorter_than_a_row_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the model\n", encoding="utf-8")
    data = open_dataset(str(tmp_path / "short.txt"), text=TextOptions(tokenizer=write_tokenizer(tmp_path / "t.json")))
    assert [feed["input_ids"].tolist() for feed in data.feeds([IDS])] == [[_tokens("the model")]]


@pytest.mark.parametrize(
    ("content", "inputs", "problem", "fix"),
    [
        (b"\xff\xfe\x00a", [IDS], "is not text in UTF-8", "UTF-8"),
        (b"the", [IDS], "fewer than two tokens", "text"),
        (b"the " * 40, [TensorSpec("input_ids", np.dtype(np.int64), (1, 7))], "exactly 7 tokens", "--tokens 7"),
        (b"the " * 40, [IDS, TensorSpec("pixels", np.dtype(np.float32), (1, 3, 8, 8))], "pixels", "arrays"),
        (b"the " * 40, [TensorSpec("x", np.dtype(np.float32), (1, 8))], "x", "arrays"),
    ],
)
def test_text_that_does_not_fit(
    tmp_path: Path, content: bytes, inputs: list[TensorSpec], problem: str, fix: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    options = TextOptions(tokenizer=write_tokenizer(tmp_path / "t.json"), tokens=10)
    with pytest.raises(CalibError) as caught:
        list(open_dataset(str(tmp_path / "text.txt"), text=options).feeds(inputs))
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_a_damaged_tokenizer_is_refused(tmp_path: Path, words: Path) -> None:
    (tmp_path / "t.json").write_text('{"model": {"type": "BPE"', encoding="utf-8")
    with pytest.raises(CalibError, match="not a tokenizer"):
        open_dataset(str(words), text=TextOptions(tokenizer=tmp_path / "t.json"))


def test_words_that_a_tokenizer_has_no_token_for_are_refused(tmp_path: Path) -> None:
    content = json.loads(write_tokenizer(tmp_path / "t.json").read_text())
    content["model"]["vocab"] = {"a": 0, "the": 1}
    content["added_tokens"] = []
    (tmp_path / "t.json").write_text(json.dumps(content))
    (tmp_path / "text.txt").write_text("the a other words", encoding="utf-8")
    data = open_dataset(str(tmp_path / "text.txt"), text=TextOptions(tokenizer=tmp_path / "t.json"))
    with pytest.raises(CalibError, match="makes no tokens"):
        next(data.feeds([IDS]))


def test_empty_caches_have_the_head_size_that_the_graph_leaves_open(tmp_path: Path, text: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(random_weights()), path)
    options = TextOptions(tokenizer=write_tokenizer(tmp_path / "t.json"), tokens=8)
    data = DataRequest(source=str(text), text=options, batch_size=3)
    session = Session(path)
    feed = next(data.feeds(data.open(), session.inputs, session.outputs))
    assert feed["past_key_values.1.value"].shape == (3, KV_HEADS, 0, HEAD)
    bare = onnx.ModelProto.FromString(decoder(random_weights(), cache=False).SerializeToString())
    other = ort.InferenceSession(bare.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = other.run(["logits"], {"input_ids": feed["input_ids"]})
    np.testing.assert_allclose(session.run(feed)["logits"], expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_folder_is_quantized_with_text(
    folder: Path, text: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    output, manifest = tmp_path / "small.onnx", tmp_path / "small.manifest.json"
    arguments = ["--scheme", "weights", "--bits", 4, "--block-size", 16, "--calib-data", text, "--tokens", 20]
    done = run("quantize", folder, *arguments, "--limit", 10, "-o", output, "--json")
    assert done.code == 0, done.err
    # What caches hold shows in the logits already.
    assert [output["name"] for output in done.json["outputs"]] == ["logits"]
    assert "MatMulNBits" in {node.op_type for node in onnx.load(output).graph.node}
    assert Path(json.loads(manifest.read_text())["inputs"]["tokenizer"]["path"]).name == "tokenizer.json"
    again = run("quantize", "--locked", manifest, "-o", tmp_path / "again.onnx")
    assert again.code == 0, again.err
    assert (tmp_path / "again.onnx").read_bytes() == output.read_bytes()
    into = run("quantize", folder, "--locked", manifest, "-o", tmp_path / "into")
    assert into.code == 0, into.err
    assert (tmp_path / "into" / "model.onnx").read_bytes() == output.read_bytes()
    assert (tmp_path / "into" / "genai_config.json").is_file()
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")
    refused = run("quantize", "--locked", manifest, "-o", tmp_path / "third.onnx")
    assert refused.code == 2
    assert "the tokenizer" in refused.err


def test_text_without_a_tokenizer_says_what_to_name(folder: Path, text: Path, run: Callable[..., Any]) -> None:
    tokenizer = (folder / "tokenizer.json").rename(folder.parent / "other.json")
    arguments = ["--scheme", "weights", "--block-size", 16, "--calib-data", text, "--limit", 4]
    refused = run("quantize", folder, *arguments)
    assert refused.code == 2
    assert "--tokenizer" in refused.err
    done = run("quantize", folder, *arguments, "--tokenizer", tokenizer)
    assert done.code == 0, done.err
    assert (folder.parent / "float-quantized" / "model.onnx").is_file()


def test_text_without_the_package_says_what_to_install(
    tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TextOptions(tokenizer=write_tokenizer(tmp_path / "t.json"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(CalibError, match="tokenizers") as caught:
        open_dataset(str(words), text=options)
    assert "qtool-onnx[llm]" in caught.value.fix


@pytest.mark.parametrize("option", [["--tokens", 8], ["--tokenizer", "t.json"]])
def test_options_for_text_need_text(folder: Path, run: Callable[..., Any], option: list[object]) -> None:
    np.savez("rows.npz", input_ids=np.zeros((4, 8), np.int64))
    for arguments in (["quantize", folder, "--scheme", "weights"], ["report", folder, folder], ["calibrate", folder]):
        data = ["--data" if arguments[0] == "report" else "--calib-data", "rows.npz"]
        done = run(*arguments, *data, *option)
        assert done.code == 2
        assert f"{option[0]} has no effect without text" in done.err


@pytest.mark.parametrize("command", ["calibrate", "sensitivity"])
def test_other_commands_take_text_and_folders(folder: Path, text: Path, run: Callable[..., Any], command: str) -> None:
    done = run(command, folder, "--calib-data", text, "--tokens", 16, "--limit", 4, "--json")
    assert done.code == 0, done.err
    assert done.json
