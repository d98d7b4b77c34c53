"""Sessions on graphs in memory read the weights of products where they are, and compute what copies would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qtool.formats.onnx.map_types import load_model
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session

_SIDE = 5000
_WEIGHT_BYTES = _SIDE * _SIDE * 4


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process on Linux only")
def test_a_session_without_prepacking_holds_no_second_copy_of_weights(save: Callable[..., Path]) -> None:
    weight = np.random.default_rng(1).normal(0, 0.01, (_SIDE, _SIDE)).astype(np.float32)
    path = save("wide.onnx", f"wide (float[n,{_SIDE}] x) => (float[n,{_SIDE}] y) {{ y = MatMul (x, w) }}", w=weight)
    model = load_model(path)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    before = _resident_bytes()
    with open_graph(model, prepacks=False) as session:
        assert _resident_bytes() - before < 0.5 * _WEIGHT_BYTES
        x = np.random.default_rng(2).normal(0, 1, (2, _SIDE)).astype(np.float32)
        got = session.run({"x": x})["y"]
    np.testing.assert_allclose(got, x @ weight, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose <perm = [1,0]> (x) a = MatMul (t, w) y = Transpose <perm = [1,0]> (a)",
        "t = Transpose <perm = [1,0]> (x) a = Add (t, w) y = Transpose <perm = [1,0]> (a)",
        "t = Transpose <perm = [1,0]> (w) y = MatMul (x, t)",
        "a = MatMul (x, w) b = Add (a, w) y = MatMul (b, w)",
    ],
)
def test_weights_that_are_turned_somewhere_come_out_right(save: Callable[..., Path], body: str) -> None:
    weight = np.random.default_rng(3).normal(0, 1, (64, 64)).astype(np.float32)
    path = save("turned.onnx", f"turned (float[64,64] x) => (float[64,64] y) {{ {body} }}", w=weight)
    x = np.random.default_rng(4).normal(0, 1, (64, 64)).astype(np.float32)
    expected = Session(path).run({"x": x})["y"]
    model = load_model(path)
    for prepacks in (True, False):
        with open_graph(model, prepacks=prepacks) as session:
            np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-3)
