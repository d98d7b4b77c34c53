"""``--max-perplexity-rise``: mixed bits by what they do to the perplexity of a small language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from qtool.runtime.session import Session

_VOCABULARY, _WIDTH = 256, 64
_NETWORK = f"""
net (int64[n,t] input_ids) => (float[n,t,{_VOCABULARY}] logits)
{{
    x = Gather (table, input_ids)
    h = MatMul (x, w1)
    a = Relu (h)
    y = MatMul (a, w2)
    sum = Add (x, y)
    logits = MatMul (sum, head)
}}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that knows a token's likely followers, as net.onnx, and rows of tokens, as tokens.npz and other.npz."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_NETWORK}')
    generator = np.random.default_rng(0)
    table = generator.normal(0, 1, (_VOCABULARY, _WIDTH))
    follower = generator.permutation(_VOCABULARY)
    arrays = {
        "table": table,
        "w1": generator.standard_t(4, (_WIDTH, 96)) * 0.1,
        "w2": generator.standard_t(4, (96, _WIDTH)) * 0.1,
        "head": 0.12 * table[np.argsort(follower)].T,
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, tmp_path / "net.onnx")
    for name, rows in (("tokens", 32), ("other", 64)):
        tokens = generator.integers(0, _VOCABULARY, (rows, 40))
        for place in range(1, 40):
            known = generator.random(rows) < 0.8
            tokens[known, place] = follower[tokens[known, place - 1]]
        np.savez(tmp_path / f"{name}.npz", input_ids=tokens)
    return tmp_path / "net.onnx"


def _perplexity(model: Path) -> float:
    tokens = np.load("other.npz")["input_ids"]
    logits = Session(model).run({"input_ids": tokens})["logits"].astype(np.float64)
    scores = logits - logits.max(axis=2, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=2, keepdims=True))
    rows, places = np.indices(tokens[:, 1:].shape)
    return float(np.exp(-scores[rows, places, tokens[:, 1:]].mean()))


def test_the_rise_of_perplexity_is_kept(run: Any, model: Path) -> None:
    options = ("--calib-data", "tokens.npz", "--scheme", "weights", "--accuracy-level", "0", "--block-size", 64)
    sizes, rises = [], []
    for share in ("20%", "0.02%"):
        result = run("quantize", model, *options, "--max-perplexity-rise", share, "-o", f"{share}.onnx", "--json")
        assert result.code == 0, result.err
        measured = result.json["attempts"][0]["perplexity_rise"]
        assert measured <= float(share.rstrip("%")) / 100
        sizes.append(result.json["quantized_bytes"])
        rises.append(_perplexity(Path(result.json["output"])) / _perplexity(model) - 1)
    assert sizes[0] < sizes[1]
    assert rises[1] < rises[0]
    # On other rows of the same kind it is about the same.
    assert abs(rises[1]) < 0.002


def test_a_model_without_logits_has_no_perplexity(run: Any, tmp_path: Path) -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[n,64] x) => (float[n,64] y) { y = MatMul (x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    onnx.save(proto, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(0, 1, (32, 64)).astype(np.float32))
    result = run(
        *("quantize", "net.onnx", "--calib-data", "data.npz", "--scheme", "weights", "--max-perplexity-rise", "2%")
    )
    assert result.code == 2
    assert "logits" in result.err
    assert not list(tmp_path.glob("net.*.onnx"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--max-perplexity-rise", "2%", "--min-sqnr", "20"), "--min-sqnr and --max-perplexity-rise exclude"),
        (("--max-perplexity-rise", "much"), "must be between 0 and 1, not 'much'"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Any, model: Path, options: tuple[str, ...], problem: str) -> None:
    result = run("quantize", model, "--calib-data", "tokens.npz", "--scheme", "weights", *options)
    assert result.code == 2
    assert problem in " ".join(result.err.split())
