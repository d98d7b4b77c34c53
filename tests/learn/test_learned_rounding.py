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
