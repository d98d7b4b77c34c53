"""NaN inside of a model that no output depends on is no fault of the data; NaN that reaches an output is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

_WIDTH, _STEPS = 16, 6
# A query that may look at nothing has a softmax of nothing but -inf, which is NaN; Where drops its row at the end.
_ATTENTION = """g (float[n,6,16] x, bool[n,6] valid) => (float[n,6,16] y) {
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (q, kt)
    sc = Add (s, causal)
    row = Unsqueeze (valid, one)
    sm = Where (row, sc, low)
    p = Softmax <axis = -1> (sm)
    c = MatMul (p, v)
    f = MatMul (c, w1)
    r = Relu (f)
    o = MatMul (r, w2)
    column = Unsqueeze (valid, two)
    y = Where (column, o, zero)
}"""
_UNGUARDED = _ATTENTION.replace(
    "    y = Where (column, o, zero)\n", "    d = Where (column, o, o)\n    y = Identity (d)\n"
)


def _save(save: Any, name: str, text: str) -> Path:
    r = np.random.default_rng(2)
    shapes = {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "w1": (16, 24), "w2": (24, 16)}
    tensors = {key: r.normal(0, 0.3, shape).astype(np.float32) for key, shape in shapes.items()}
    tensors["causal"] = np.where(np.tril(np.ones((_STEPS, _STEPS))) > 0, 0, -np.inf).astype(np.float32)
    tensors |= {"one": np.array([1]), "two": np.array([2]), "low": np.float32(-np.inf), "zero": np.float32(0)}
    path: Path = save(name, text, **tensors)
    return path


def _feeds(filled: np.ndarray) -> dict[str, np.ndarray]:
    x = np.random.default_rng(3).normal(0, 2, (len(filled), _STEPS, _WIDTH)).astype(np.float32)
    return {"x": x, "valid": np.arange(_STEPS) >= (_STEPS - filled)[:, None]}


@pytest.fixture
def attention(save: Any, tmp_path: Path) -> Path:
    """Attention over texts that are padded on the left, as attention.onnx, and data for it."""
    np.savez(tmp_path / "data.npz", **_feeds(np.random.default_rng(4).integers(3, _STEPS + 1, 60)))
    return _save(save, "attention.onnx", _ATTENTION)


def test_the_model_is_nan_inside_and_whole_outside(attention: Path, tmp_path: Path) -> None:
    feeds = dict(np.load(tmp_path / "data.npz"))
    assert np.isfinite(ort.InferenceSession(attention).run(None, feeds)[0]).all()
    exposed = attention.with_name("exposed.onnx")
    model = onnx.load(attention)
    model.graph.output.append(onnx.helper.make_tensor_value_info("o", 1, None))
    onnx.save(model, exposed)
    assert np.isnan(ort.InferenceSession(exposed).run(["o"], feeds)[0]).any()


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_padding_is_no_bad_data(run: Any, attention: Path, tmp_path: Path, effort: str) -> None:
    given = ("--calib-data", "data.npz", "--target", "x86", "--effort", effort, "--batch-size", 2)
    outcome = run("quantize", attention, *given, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["coverage"]["integer_nodes"] >= 5
    feeds = dict(np.load(tmp_path / "data.npz"))
    (expected,), (found,) = (
        ort.InferenceSession(path).run(None, feeds) for path in (attention, attention.with_name("attention.int8.onnx"))
    )
    noise = np.square(expected.astype(np.float64) - found).sum() / np.square(expected.astype(np.float64)).sum()
    assert -10 * np.log10(noise) > 20


@pytest.mark.parametrize("command", [("calibrate",), ("sensitivity",), ("quantize", "--target", "qnn")])
def test_every_command_that_looks_inside_takes_it(run: Any, attention: Path, command: tuple[str, ...]) -> None:
    outcome = run(command[0], attention, "--calib-data", "data.npz", *command[1:])
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_nan_in_an_output_names_its_batch_among_all(run: Any, save: Any, tmp_path: Path, effort: str) -> None:
    filled = np.full(64, _STEPS)
    filled[37] = 3
    np.savez(tmp_path / "data.npz", **_feeds(filled))
    path = _save(save, "unguarded.onnx", _UNGUARDED)
    given = ("--calib-data", "data.npz", "--target", "x86", "--effort", effort, "--batch-size", 1)
    outcome = run("quantize", path, *given)
    assert outcome.code == 2
    assert "is NaN for batch 37 of the data" in outcome.err
    assert "fix:" in outcome.err
