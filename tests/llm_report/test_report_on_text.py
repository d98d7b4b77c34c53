"""Reports on language models: figures against torch, gates, prompts and every form, with and without a cache."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from qtool.metrics.memory import Memory
from qtool.runtime.session import Session
from tests.llm_report.tiny_llama import WORDS, decoder, random_weights, rounded, write_folder, write_tokenizer

FIGURES = ("perplexity", "perplexity_float", "perplexity_rise", "kl", "same_token")
QUICK = ("--rounds", 8, "--tokens", 32)


@pytest.fixture
def small(folder: Path) -> Path:
    """The folder of a model with weights of 4 bits."""
    return write_folder(folder.parent / "small", rounded(random_weights(), 4))


@pytest.fixture(autouse=True)
def _shortest_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtool.metrics.latency._TURN_SECONDS", 0.0)


def _rows(text: Path, length: int) -> np.ndarray:
    tokens = [WORDS.index(word) for word in text.read_text().split()]
    return np.array(tokens[: len(tokens) // length * length]).reshape(-1, length)


def _torchs(text: Path, length: int) -> dict[str, float]:
    """Returns the figures of models without a cache, from their logits."""
    tokens = _rows(text, length)
    logs = []
    for weights in (random_weights(), rounded(random_weights(), 4)):
        session = Session(decoder(weights, cache=False).SerializeToString())
        logits = torch.tensor(session.run({"input_ids": tokens})["logits"][:, :-1], dtype=torch.float64)
        logs.append(torch.log_softmax(logits, -1).flatten(0, 1))
    follow = torch.tensor(tokens[:, 1:]).flatten()
    base, other = (math.exp(torch.nn.functional.nll_loss(log, follow)) for log in logs)
    divergence = torch.nn.functional.kl_div(logs[1], logs[0], reduction="batchmean", log_target=True)
    return {
        "perplexity": other,
        "perplexity_float": base,
        "perplexity_rise": 100 * (other / base - 1),
        "kl": float(divergence),
        "same_token": 100 * float((logs[0].argmax(-1) == logs[1].argmax(-1)).double().mean()),
    }


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the memory out, which takes a process each time."""
    monkeypatch.setattr(
        "qtool.workflows.report.report_times.measure_memory", lambda *_, **__: Memory(reason="not measured")
    )


def test_figures_are_those_of_the_logits(folder: Path, small: Path, text: Path, run: Callable[..., Any]) -> None:
    done = run("report", folder, small, "--data", text, *QUICK, "--json")
    assert done.code == 0, done.err
    (model,) = done.json["quantized_models"]
    figures, intervals, expected = model["figures"], model["intervals"], _torchs(text, 32)
    assert {name: figures[name] for name in FIGURES} == pytest.approx(expected, rel=1e-4)
    assert 0 < figures["same_token"] < 100
    for name in (*FIGURES, "prefill", "decode", "prefill_speedup", "decode_speedup", "first_token_ms"):
        assert intervals[name][0] <= figures[name] <= intervals[name][1]
    assert done.json["datasets"][0]["tokens"] == 12 * 31
    assert model["token_times"]["prompt_tokens"] == 32
    assert model["token_times"]["cached_tokens"] == 31
    assert figures["decode"] == pytest.approx(1e3 / figures["latency_ms"], rel=0.05)
    # Of an even number of rounds, the median of inverses is not quite the inverse of the median.
    assert figures["prefill"] == pytest.approx(32e3 / figures["first_token_ms"], rel=0.05)
    assert figures["decode_speedup"] == figures["speedup"]
    assert figures["memory_mb"] > 0


@pytest.mark.usefixtures("without_memory")
def test_models_without_a_cache_have_the_same_figures(
    tmp_path: Path, folder: Path, text: Path, run: Callable[..., Any]
) -> None:
    onnx.save(decoder(random_weights(), cache=False), tmp_path / "float.onnx")
    onnx.save(decoder(rounded(random_weights(), 4), cache=False), tmp_path / "small.onnx")
    models = tmp_path / "float.onnx", tmp_path / "small.onnx"
    done = run("report", *models, "--data", text, "--tokenizer", folder, *QUICK, "--json")
    assert done.code == 0, done.err
    (model,) = done.json["quantized_models"]
    assert {name: model["figures"][name] for name in FIGURES} == pytest.approx(_torchs(text, 32), rel=1e-4)
    assert model["token_times"]["cached_tokens"] == 0
    arrays = tmp_path / "rows.npz"
    np.savez(arrays, input_ids=_rows(text, 32))
    by_metric = run("report", *models, "--data", arrays, "--metric", "perplexity", "--no-latency", "--json")
    assert by_metric.code == 0, by_metric.err
    found = by_metric.json["quantized_models"][0]["figures"]
    assert found["metric"] == pytest.approx(model["figures"]["perplexity"], rel=1e-6)
    assert found["metric_drop"] == pytest.approx(found["metric"] - found["metric_float"])
    assert found["metric_drop"] > 0
    assert found["perplexity_rise"] is None


@pytest.mark.usefixtures("without_memory")
def test_rows_of_a_fixed_length_are_told_and_taken(tmp_path: Path, text: Path, run: Callable[..., Any]) -> None:
    model = tmp_path / "fixed.onnx"
    onnx.save(decoder(random_weights(), cache=False, length=16), model)
    tokenizer = write_tokenizer(tmp_path / "t.json")
    refused = run("report", model, model, "--data", text, "--tokenizer", tokenizer)
    assert refused.code == 2
    assert "--tokens 16" in refused.err
    done = run(
        "report", model, model, "--data", text, "--tokenizer", tokenizer, "--tokens", 16, "--rounds", 8, "--json"
    )
    assert done.code == 0, done.err
    (found,) = done.json["quantized_models"]
    assert found["figures"]["perplexity_rise"] == 0
    assert found["figures"]["kl"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ("perplexity_rise > 2%", 1),
        ("perplexity_rise > 10000%", 0),
        ("same_token < 99.9 %", 2),
        ("same_token < 99.9%", 1),
        ("kl > 0.000001", 1),
        ("decode_speedup < 0.0001", 0),
        ("first_token_ms > 100000", 0),
        ("decode < 1000000000", 1),
        ("top1 < 5%", 2),
    ],
)
@pytest.mark.usefixtures("without_memory")
def test_gates_on_language_figures(
    folder: Path, small: Path, text: Path, run: Callable[..., Any], gate: str, code: int
) -> None:
    done = run("report", folder, small, "--data", text, *QUICK, "--fail-if", gate)
    assert done.code == code, done.err
    if code == 1:
        assert gate.split()[0] in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fail-if", "perplexity_rise > 2"], "needs text"),
        (["--fail-if", "decode_speedup < 1"], "needs text"),
    ],
)
@pytest.mark.usefixtures("without_memory")
def test_gates_on_language_figures_need_text(
    tmp_path: Path, text: Path, run: Callable[..., Any], arguments: list[str], told: str
) -> None:
    onnx.save(decoder(random_weights(), cache=False), tmp_path / "float.onnx")
    np.savez(tmp_path / "rows.npz", input_ids=_rows(text, 32))
    done = run("report", "float.onnx", "float.onnx", "--data", "rows.npz", *arguments)
    assert done.code == 2
    assert told in done.err


@pytest.mark.usefixtures("without_memory")
def test_gates_on_times_need_times(folder: Path, text: Path, run: Callable[..., Any]) -> None:
    done = run("report", folder, folder, "--data", text, "--no-latency", "--fail-if", "decode_speedup < 1")
    assert done.code == 2
    assert "not measured" in done.err


@pytest.mark.usefixtures("without_memory")
def test_every_form_tells_the_figures_and_what_the_models_say(
    tmp_path: Path, folder: Path, small: Path, text: Path, run: Callable[..., Any]
) -> None:
    forms = ["-o", "r.json", "--markdown", "r.md", "--html", "r.html", "--junit", "r.xml"]
    prompts = ["--prompt", "layer weight to", "--prompt", "array axis shape", "--new-tokens", 9]
    done = run("report", folder, small, "--data", text, *QUICK, *prompts, *forms, "--fail-if", "same_token < 1")
    assert done.code == 0, done.err
    answers = json.loads((tmp_path / "r.json").read_text())["quantized_models"][0]["answers"]
    assert [answer["prompt"] for answer in answers] == ["layer weight to", "array axis shape"]
    assert [len(answer["float_text"].split()) for answer in answers] == [9, 9]
    assert [answer["tokens"] for answer in answers] == [9, 9]
    assert all(0 <= answer["same_tokens"] <= answer["tokens"] for answer in answers)
    for name in ("r.md", "r.html"):
        content = (tmp_path / name).read_text(encoding="utf-8")
        for part in (
            "perplexity",
            "31 in the cache",
            "time to the first token, 32 tokens",
            "nats",
            "tokens/s",
        ):
            assert part in content, (name, part)
        assert answers[0]["float_text"] in content
        assert answers[1]["text"] in content
    assert "rise of perplexity" in done.out
    suite = ET.parse(tmp_path / "r.xml").getroot()
    assert any(each.get("name") == "perplexity_rise" for each in suite.iter("property"))


@pytest.mark.usefixtures("without_memory")
def test_text_is_compared_with_an_earlier_report(
    folder: Path, small: Path, text: Path, run: Callable[..., Any]
) -> None:
    assert run("report", folder, folder, "--data", text, *QUICK, "--no-latency", "-o", "r.json").code == 0
    worse = run("report", folder, small, "--data", text, *QUICK, "--no-latency", "--baseline", "r.json", "--json")
    assert worse.code == 1
    failed = {each["condition"].split()[0] for each in worse.json["verdicts"] if each["outcome"] == "failed"}
    assert {"perplexity_rise", "kl", "same_token"} <= failed


@pytest.mark.usefixtures("without_memory")
def test_logits_of_the_last_position_alone_are_refused(tmp_path: Path, text: Path, run: Callable[..., Any]) -> None:
    model = decoder(random_weights(), cache=False)
    node = next(node for node in model.graph.node if node.output[0] == "logits")
    node.output[0] = "all"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "minus"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["all", "minus"], ["logits"], axis=1))
    onnx.save(model, tmp_path / "last.onnx")
    tokenizer = write_tokenizer(tmp_path / "t.json")
    done = run("report", "last.onnx", "last.onnx", "--data", text, "--tokenizer", tokenizer, *QUICK)
    assert done.code == 2
    assert "all positions" in done.err


@pytest.mark.usefixtures("without_memory")
def test_a_prompt_without_a_tokenizer_is_refused(tmp_path: Path, text: Path, run: Callable[..., Any]) -> None:
    onnx.save(decoder(random_weights(), cache=False), tmp_path / "float.onnx")
    np.savez(tmp_path / "rows.npz", input_ids=_rows(text, 32))
    done = run("report", "float.onnx", "float.onnx", "--data", "rows.npz", "--no-latency", "--prompt", "the")
    assert done.code == 2
    assert "--tokenizer" in done.err


@pytest.mark.usefixtures("without_memory")
def test_several_models_and_texts_stand_side_by_side(
    tmp_path: Path, folder: Path, small: Path, text: Path, run: Callable[..., Any]
) -> None:
    smaller = write_folder(tmp_path / "smaller", rounded(random_weights(), 3))
    other = tmp_path / "other.txt"
    other.write_text("".join(reversed(text.read_text().splitlines(keepends=True))), encoding="utf-8")
    arguments = ["--data", text, "--data", f"turned={other}", *QUICK, "--fail-if", "perplexity_rise > 1%"]
    done = run("report", folder, small, smaller, *arguments, "--json")
    assert done.code == 1
    models = {(model["name"], model["dataset"]): model for model in done.json["quantized_models"]}
    assert len(models) == 4
    for data in ("text.txt", "turned"):
        first, second = (models[f"{name}/model.onnx", data]["figures"] for name in ("small", "smaller"))
        assert 0 < first["kl"] < second["kl"]
        assert first["perplexity_float"] == second["perplexity_float"]
    perplexities = {model["figures"]["perplexity_float"] for model in models.values()}
    assert len(perplexities) == 2
    assert len({model["figures"]["decode"] for model in models.values()}) == 2
    assert {verdict["dataset"] for verdict in done.json["verdicts"]} == {"text.txt", "turned"}
    told = run("report", folder, small, smaller, *arguments).out
    assert told.count("turned") >= 4


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch-size", 4], "no effect on text"),
        (["--prompt", ""], "a prompt is empty"),
        (["--tokenizer", "nowhere"], "no tokenizer at nowhere"),
        (["--labels", "y"], "no array 'y'"),
    ],
)
def test_options_that_do_not_fit_text_are_refused(
    folder: Path, text: Path, run: Callable[..., Any], arguments: list[object], told: str
) -> None:
    done = run("report", folder, folder, "--data", text, *QUICK, "--no-latency", *arguments)
    assert done.code == 2
    assert told in " ".join(done.err.split())
    assert not done.out


@pytest.mark.usefixtures("without_memory")
def test_a_tokenizer_of_another_model_is_refused(folder: Path, text: Path, run: Callable[..., Any]) -> None:
    tokenizer = folder / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: number if number < 3 else number + 50 for word, number in vocabulary.items()}
    tokenizer.write_text(json.dumps(content))
    done = run("report", folder, folder, "--data", text, *QUICK, "--no-latency")
    assert done.code == 2
    assert "fix:" in done.err


def test_text_that_a_vision_model_is_given_is_refused(tmp_path: Path, text: Path, run: Callable[..., Any]) -> None:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [info("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [info("y", onnx.TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    tokenizer = write_tokenizer(tmp_path / "t.json")
    done = run("report", "net.onnx", "net.onnx", "--data", text, "--tokenizer", tokenizer)
    assert done.code == 2
    assert "text" in done.err
