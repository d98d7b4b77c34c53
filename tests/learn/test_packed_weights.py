"""Weights in packed blocks are computed, trained and stored as onnxruntime reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from qtool.learn.differentiable_graph import DifferentiableGraph
from qtool.learn.learned_quantization import LearnedQuantization, Rates
from tests.conftest import Outcome

Run = Callable[..., Outcome]

_NETWORK = """net (int64[n, t] ids) => (float[n, t, 24] y) {
    e = Gather (table, ids)
    h = MatMul (e, w1)
    b = Add (h, b1)
    a = Relu (b)
    y = MatMul (a, w2)
}"""


@pytest.fixture
def model(save: Callable[..., Path]) -> Path:
    """A table and two products, the second one of inputs that fill no whole blocks, as words.onnx."""
    draw = np.random.default_rng(0)
    return save(
        "words.onnx",
        _NETWORK,
        table=draw.standard_t(4, (60, 32)).astype(np.float32),
        w1=(draw.standard_t(4, (32, 40)) * 0.2).astype(np.float32),
        b1=draw.normal(0, 0.1, 40).astype(np.float32),
        w2=(draw.standard_t(4, (40, 24)) * 0.2).astype(np.float32),
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "ids.npz"
    np.savez(path, ids=np.random.default_rng(1).integers(0, 60, (120, 8)))
    return path


def _quantized(run: Run, model: Path, *options: Any) -> Path:
    path = model.with_name("words.q.onnx")
    level = () if "qdq" in options else ("--accuracy-level", "0")
    made = run("quantize", model, "--scheme", "weights", *level, *options, "-o", path)
    assert made.code == 0, made.err
    return path


def _outputs(path: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": ids})[0])


def _sqnr_db(model: Path, path: Path, ids: np.ndarray[Any, Any]) -> float:
    wanted, given = _outputs(model, ids), _outputs(path, ids)
    return float(10 * np.log10(np.square(wanted).sum() / np.square(given - wanted).sum()))


_FORMS = [
    ("--bits", "4", "--block-size", "16"),
    ("--bits", "4", "--block-size", "32", "--weights-symmetric"),
    ("--bits", "2", "--block-size", "16"),
    ("--bits", "8", "--block-size", "32"),
    ("--bits", "8", "--block-size", "16", "--weights-symmetric"),
    ("--bits", "4", "--block-size", "16", "--format", "qdq"),
    ("--bits", "4", "--block-size", "16", "--format", "qdq", "--weights-symmetric"),
    ("--bits", "4", "--per-channel", "--format", "qdq"),
]


@pytest.mark.parametrize("form", _FORMS, ids=" ".join)
def test_torch_computes_what_onnxruntime_does(run: Run, model: Path, form: tuple[str, ...]) -> None:
    path = _quantized(run, model, *form)
    ids = np.random.default_rng(2).integers(-60, 60, (5, 8))
    graph = ir.load(path)
    learned = LearnedQuantization(graph)
    differentiable = DifferentiableGraph(graph)
    found = differentiable.run({"ids": torch.from_numpy(ids)}, ["y"], learned.values())["y"]
    np.testing.assert_allclose(found.detach().numpy(), _outputs(path, ids), rtol=1e-4, atol=1e-4)
    assert not differentiable.foreign
    assert learned.learns_integers


@pytest.mark.parametrize("form", _FORMS, ids=" ".join)
def test_what_is_learned_is_what_is_stored(run: Run, model: Path, form: tuple[str, ...]) -> None:
    path = _quantized(run, model, *form)
    ids = torch.from_numpy(np.random.default_rng(2).integers(0, 60, (5, 8)))
    graph = ir.load(path)
    learned, differentiable = LearnedQuantization(graph), DifferentiableGraph(graph)
    # Far enough for many integers to change.
    optimizer = torch.optim.Adam(learned.groups(Rates(steps=0.4, scales=0.01)))
    for _ in range(3):
        optimizer.zero_grad()
        differentiable.run({"ids": ids}, ["y"], learned.values())["y"].square().sum().backward()
        optimizer.step()
    changed = graph.clone()
    learned.store(changed)
    other = path.with_name("changed.onnx")
    ir.save(changed, other)
    onnx.checker.check_model(onnx.load(other))
    before, after = ({t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (path, other))
    assert before.keys() == after.keys()
    kinds = {name.rsplit("_", 1)[-1] for name in before if not np.array_equal(before[name], after[name])}
    assert {"quantized", "scales"} <= kinds
    assert "points" not in kinds
    wanted = differentiable.run({"ids": ids}, ["y"], learned.values())["y"].detach().numpy()
    np.testing.assert_allclose(_outputs(other, ids.numpy()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["nbits", "qdq"])
def test_training_brings_weights_of_few_bits_nearer_to_float(run: Run, model: Path, data: Path, form: str) -> None:
    path = _quantized(run, model, "--bits", "4", "--weight-method", "rtn", "--format", form)
    trained = path.with_name("trained.onnx")
    result = run("finetune", path, "--calib-data", data, "--steps", "200", "--loss", "mse", "-o", trained, "--json")
    assert result.code == 0, result.err
    assert result.json["without_gradient"] == {}
    with np.load(data) as file:
        ids = file["ids"]
    assert _sqnr_db(model, trained, ids) > _sqnr_db(model, path, ids) + 1.0
    kinds = [[node.op_type for node in onnx.load(p).graph.node] for p in (path, trained)]
    assert kinds[0] == kinds[1]


def test_a_float_model_has_nothing_to_learn(run: Run, model: Path, data: Path) -> None:
    result = run("finetune", model, "--float", model, "--calib-data", data, "-o", "never.onnx")
    assert result.code == 2
    assert "no QuantizeLinear and no integer weights" in result.err
    assert not Path("never.onnx").exists()
