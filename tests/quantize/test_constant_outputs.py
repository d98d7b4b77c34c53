"""Weights that a graph gives out as well stay what they are there, whatever becomes of them in the layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

Save = Callable[..., Path]

_GRAPH = """
g (float[n,16] row) => (float[n,8] first, float[n,8] last, float[16,8] v, float[8] b, float[8,8] turned)
{
    first = MatMul (row, v)
    biased = Add (first, b)
    turned = Transpose <perm = [1,0]> (w)
    last = MatMul (biased, turned)
}
"""


@pytest.mark.parametrize(
    "options",
    [
        ["--calib-data", "c.npz", "--smallest", "--effort", "fast", "--smoothquant", "--cle"],
        ["--calib-data", "c.npz", "--scheme", "dynamic"],
        ["--calib-data", "c.npz", "--scheme", "weights", "--bits", "4", "--block-size", "16"],
    ],
    ids=["static", "dynamic", "weights"],
)
def test_outputs_that_are_weights_keep_their_values(
    run: Any, save_model: Save, tmp_path: Path, options: list[str]
) -> None:
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(64, 16)).astype(np.float32)
    rows[:, 3] *= 40  # an outlier channel, which SmoothQuant takes up
    np.savez(tmp_path / "c.npz", row=rows)
    weights = {
        "v": rng.normal(size=(16, 8)).astype(np.float32),
        "b": rng.normal(size=8).astype(np.float32),
        "w": rng.normal(size=(8, 8)).astype(np.float32),
    }
    path = save_model("net.onnx", _GRAPH, **weights)
    outcome = run("quantize", path, *options, "-o", "out.onnx")
    assert outcome.code == 0, outcome.err
    expected, result = _outputs(path, rows), _outputs(tmp_path / "out.onnx", rows)
    for name in ("v", "b", "turned"):
        np.testing.assert_array_equal(result[name], expected[name])
    for name in ("first", "last"):
        error = float(((result[name] - expected[name]) ** 2).sum() / (expected[name] ** 2).sum())
        assert 0 < error < 0.01
    quantized = {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert quantized & {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"}


def _outputs(path: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"row": rows}), strict=True))
