"""How ``quantize --scheme dynamic`` keeps what outlier channels and tokens of language models would drown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qtool.runtime.session import Session
from tests.graphs_read import counted_operators

_TOKENS, _WIDTH, _HIDDEN = 640, 32, 96
_BLOCK = """
    n{i} = LayerNormalization (x{i}, g{i}, b{i})
    a{i} = MatMul (n{i}, wa{i})
    s{i} = Sigmoid (a{i})
    u{i} = Mul (a{i}, s{i})
    v{i} = MatMul (n{i}, wv{i})
    h{i} = Mul (u{i}, v{i})
    d{i} = MatMul (h{i}, wd{i})
    x{j} = Add (x{i}, d{i})
"""
_BLOCKS = 3


def _network() -> tuple[str, dict[str, np.ndarray]]:
    """Residual SwiGLU blocks between an embedding table and a head, with channels of a hundred times the others' reach.

    Token 0 drives all hidden channels of the second block far beyond what any other token does, as the first token of
    a text does in decoders; no scaling of channels helps against that.
    """
    generator = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(0, shape[0] ** -0.5, shape)

    arrays = {"table": generator.normal(0, 1, (_TOKENS, _WIDTH))}
    arrays["table"][0] *= 4.0
    for i in range(_BLOCKS):
        gain = np.ones(_WIDTH)
        gain[3 + i] = 80.0
        values, down = normal(_WIDTH, _HIDDEN), normal(_HIDDEN, _WIDTH)
        values[:, 7 + i] *= 200.0
        down[7 + i] /= 200.0
        arrays |= {f"g{i}": gain, f"b{i}": np.zeros(_WIDTH), f"wd{i}": down}
        arrays |= {f"wa{i}": normal(_WIDTH, _HIDDEN) / gain[:, None], f"wv{i}": values / gain[:, None]}
    first = arrays["table"][0] - arrays["table"][0].mean()
    for name in ("wa1", "wv1"):
        arrays[name] += np.outer(first / np.linalg.norm(first) / arrays["g1"], 8.0 * np.ones(_HIDDEN))
    arrays |= {"gf": np.ones(_WIDTH), "bf": np.zeros(_WIDTH)}
    arrays["head"] = normal(_WIDTH, _TOKENS)
    blocks = "".join(_BLOCK.format(i=i, j=i + 1) for i in range(_BLOCKS))
    text = f"""
    decoder (int64[n,t] ids) => (float[n,t,{_TOKENS}] logits)
    {{
        x0 = Gather (table, ids)
        {blocks}
        nf = LayerNormalization (x{_BLOCKS}, gf, bf)
        logits = MatMul (nf, head)
    }}
    """
    return text, {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.fixture
def decoder(save: Callable[..., Path]) -> Path:
    """The network, as decoder.onnx."""
    text, arrays = _network()
    return save("decoder.onnx", text, **arrays)


def _ids(seed: int, rows: int) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(1, _TOKENS, (rows, 16))
    ids[:, 0] = 0
    return ids


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Forty rows of tokens that begin with token 0, as tokens.npz."""
    path = tmp_path / "tokens.npz"
    np.savez(path, ids=_ids(1, 40))
    return path


def _sqnr_db(reference: Path, other: Path) -> float:
    """SQNR of tokens other than the first, on rows that no command has seen."""
    ids = _ids(2, 8)
    exact, got = (Session(path).run({"ids": ids})["logits"][:, 1:].astype(np.float64) for path in (reference, other))
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - got).sum()))


def test_data_finds_what_one_scale_a_tensor_loses(run: Any, decoder: Path, tokens: Path) -> None:
    plain = run("quantize", decoder, "--scheme", "dynamic", "-o", "plain.onnx")
    assert plain.code == 0, plain.err
    found = run("quantize", decoder, "--scheme", "dynamic", "--calib-data", tokens, "-o", "found.onnx", "--json")
    assert found.code == 0, found.err
    before, after = _sqnr_db(decoder, Path("plain.onnx")), _sqnr_db(decoder, Path("found.onnx"))
    assert before < 22
    assert after > before + 8
    assert found.json["smoothed"], found.json
    forms = found.json["forms"]
    assert forms[0]["layers"] == {"per tensor": 3 * _BLOCKS + 1, "per block": 0, "float": 0}
    assert max(form["sqnr_db"] for form in forms) > forms[0]["sqnr_db"] + 8
    assert counted_operators(Path("found.onnx"))["MatMulNBits"] == len(found.json["nodes_in_blocks"])
    layers = [*found.json["dynamic_nodes"], *found.json["nodes_in_blocks"]]
    assert len(layers) == len(set(layers)) == 3 * _BLOCKS + 1


def test_smoothing_is_folded_into_what_makes_the_tensor(run: Any, decoder: Path, tokens: Path) -> None:
    assert run("quantize", decoder, "--scheme", "dynamic", "--calib-data", tokens, "-o", "found.onnx").code == 0
    added = [node.name for node in onnx.load("found.onnx").graph.node if "smoothing" in node.name]
    assert not added


def test_the_same_search_writes_the_same_bytes(run: Any, decoder: Path, tokens: Path) -> None:
    written = []
    for _ in range(2):
        arguments = ("--scheme", "dynamic", "--calib-data", tokens, "-o", "found.onnx", "--force")
        assert run("quantize", decoder, *arguments).code == 0
        written.append(Path("found.onnx").read_bytes())
    assert written[0] == written[1]
    again = run("quantize", "--locked", "found.manifest.json", "-o", "again.onnx")
    assert again.code == 0, again.err
    assert Path("again.onnx").read_bytes() == written[0]


def test_language_models_are_dynamic_without_being_asked(run: Any, decoder: Path, tokens: Path) -> None:
    outcome = run("quantize", decoder, "--calib-data", tokens, "-o", "usual.onnx", as_given=True)
    assert outcome.code == 0, outcome.err
    assert "a language model" in outcome.err
    assert counted_operators(Path("usual.onnx"))["MatMulInteger"] > 0
    assert "dynamic" in json.loads(Path("usual.manifest.json").read_text())["lock"]["arguments"]
    static = run("quantize", decoder, "--calib-data", tokens, "--scheme", "static", "-o", "static.onnx")
    assert static.code == 0, static.err
    asked = run("quantize", decoder, "--calib-data", tokens, "--effort", "fast", "-o", "fast.onnx")
    assert asked.code == 0, asked.err
    for name in ("static.onnx", "fast.onnx"):
        assert counted_operators(Path(name))["MatMulInteger"] == 0


def test_tables_that_no_output_scores_make_no_language_model(run: Any, save: Any, tokens: Path) -> None:
    text, arrays = _network()
    text = text.replace(f"float[n,t,{_TOKENS}] logits", f"float[n,t,{_WIDTH}] logits")
    arrays["head"] = arrays["head"][:, :_WIDTH]
    encoder = save("encoder.onnx", text, **arrays)
    outcome = run("quantize", encoder, "--calib-data", tokens, "-o", "usual.onnx")
    assert outcome.code == 0, outcome.err
    assert "a language model" not in outcome.err
    assert "MatMulInteger" not in {node.op_type for node in onnx.load("usual.onnx").graph.node}
