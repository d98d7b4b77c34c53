"""``--learned-rounding`` moves integers by a step where that brings a model nearer to float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from qtool.learn.learned_rounding import block_cuts
from qtool.planning import build_plan
from qtool.schemes import S8_SYMMETRIC, U8, Scheme
from qtool.selection import NodeSelection
from tests.conftest import Outcome
from tests.learn.conftest import Network

Run = Callable[..., Outcome]
# Plain rounding alone, so that nothing else takes what there is to learn.
_PLAIN = ("--effort", "fast", "--method", "minmax", "--no-gptq", "--no-bias-correction", "--no-cle", "--no-smoothquant")


def _weights(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    }


def test_integers_move_by_a_step_and_the_outputs_come_nearer(run: Run, network: Network, tmp_path: Path) -> None:
    weights, sqnr = {}, {}
    for name, options in {"plain": (), "learned": ("--learned-rounding",)}.items():
        path = tmp_path / f"{name}.onnx"
        found = run("quantize", network.model, "--calib-data", network.data, *_PLAIN, *options, "-o", path)
        assert found.code == 0, found.err
        weights[name], sqnr[name] = _weights(path), network.sqnr_db(path)
    plain, learned = weights["plain"], weights["learned"]
    assert plain.keys() == learned.keys()
    moves = np.concatenate([(learned[name].astype(int) - plain[name]).ravel() for name in plain])
    assert np.abs(moves).max() == 1
    assert sqnr["learned"] > sqnr["plain"] + 1


def test_blocks_begin_where_a_single_tensor_leads_on(network: Network) -> None:
    model = ir.load(network.model)
    plan = build_plan(model, Scheme(activations=U8, weights=S8_SYMMETRIC), NodeSelection())
    assert block_cuts(model, plan) == ["n_c", "n_scores"]


def test_a_bias_behind_a_product_is_learned(run: Run, save: Callable[..., Path], tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    weights = {
        "w": (draw.normal(size=(24, 16)) * 0.3).astype(np.float32),
        "b": (draw.normal(size=16) * 0.5).astype(np.float32),
        "v": (draw.normal(size=(16, 8)) * 0.3).astype(np.float32),
    }
    text = """encoder (float[batch, 5, 24] x) => (float[batch, 5, 8] y) {
        m = MatMul (x, w)
        a = Add (m, b)
        g = Tanh (a)
        y = MatMul (g, v)
    }"""
    model = save("encoder.onnx", text, **weights)
    data, path = tmp_path / "x.npz", tmp_path / "learned.onnx"
    np.savez(data, x=(draw.normal(size=(48, 5, 24)) + 0.7).astype(np.float32))
    found = run("quantize", model, "--calib-data", data, *_PLAIN, "--learned-rounding", "-o", path)
    assert found.code == 0, found.err
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (bias,) = [stored[name] for node in graph.node if node.op_type == "Add" for name in node.input if name in stored]
    change = np.abs(bias - weights["b"])
    assert 1e-5 < change.max() < 0.1
