"""Boxes in pixels and scores joined in one output keep their scores, and the output is judged by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.closeness import sqnr_db_of

# Scores first or last, joined along either axis, and what comes behind.
_ENDS = {
    "channels": "y = Concat <axis = 1> (boxes, scores)",
    "scores first": "y = Concat <axis = 1> (scores, boxes)",
    "turned behind": "j = Concat <axis = 1> (boxes, scores)\n y = Transpose <perm = [0, 2, 1]> (j)",
    "last axis": """bt = Transpose <perm = [0, 2, 1]> (boxes)
        st = Transpose <perm = [0, 2, 1]> (scores)
        y = Concat <axis = 2> (bt, st)""",
}
_NET = """g (float[n,3,16,16] x) => (float[n,u,v] y) {{
    a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    f = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r, w2, b2)
    g = Relu (f)
    c = Conv (g, wc, bc)
    l = Conv (g, wl, bl)
    cs = Sigmoid (c)
    scores = Reshape (cs, three)
    ls = Sigmoid (l)
    lr = Reshape (ls, four)
    boxes = Mul (lr, pixels)
    {end}
}}"""


@pytest.mark.parametrize("target", ["qnn", "x86", "tensorrt"])
@pytest.mark.parametrize("end", _ENDS)
def test_scores_beside_pixels_survive(run: Any, save: Any, tmp_path: Path, end: str, target: str) -> None:
    r = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (12, 8, 3, 3), "b2": (12,)}
    shapes |= {"wc": (3, 12, 1, 1), "bc": (3,), "wl": (4, 12, 1, 1), "bl": (4,)}
    tensors = {name: r.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    tensors |= {"three": np.array([0, 3, -1]), "four": np.array([0, 4, -1]), "pixels": np.float32(640)}
    path = save("net.onnx", _NET.format(end=_ENDS[end]), **{key: np.asarray(x) for key, x in tensors.items()})
    x = r.normal(0, 1, (48, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    given = ("--calib-data", "data.npz", "--target", target, "--effort", "fast", "--batch-size", 1)
    outcome = run("quantize", path, *given, "--json")
    assert outcome.code == 0, outcome.err
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected, found = (
        ort.InferenceSession(model, options).run(None, {"x": x})[0].astype(np.float64)
        for model in (path, path.with_name("net.int8.onnx"))
    )
    axis = 2 if end in ("turned behind", "last axis") else 1
    expected, found = (np.moveaxis(values, axis, 1) for values in (expected, found))
    scores = slice(0, 3) if end == "scores first" else slice(4, 7)
    assert sqnr_db_of(expected[:, scores], found[:, scores]) > 20
    (told,) = outcome.json["outputs"]
    held = slice(9, None, 10)
    assert told["part"] is not None
    assert told["part"].endswith(f"of axis {axis}")
    if target != "x86":  # whose own kernels round otherwise
        parts = (scores, slice(3, 7) if scores.start == 0 else slice(0, 4))
        worst = min(sqnr_db_of(expected[held, part], found[held, part]) for part in parts)
        assert told["sqnr_db"] == pytest.approx(worst, abs=0.05)
    if target == "qnn":
        reasons = {skip["node"]: skip["reason"] for skip in outcome.json["float_nodes"]}
        joined = "n_j" if end == "turned behind" else "n_y"
        assert "one grid has no steps for both" in reasons[joined]
