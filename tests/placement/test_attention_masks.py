"""Masks are recognized by the Softmax that reads them, of whatever size they are, and stay float with its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from qtool.backends.qdq_placement.masks import masked_scores
from qtool.calib.statistics import TensorStatistics

_FORMS = {
    "added": "b = Mul (inv, low)\n sm = Add (sc, b)",
    "added first": "b = Mul (inv, low)\n sm = Add (b, sc)",
    "subtracted": "b = Mul (inv, high)\n sm = Sub (sc, b)",
    "chosen": "c = Cast <to = 9> (inv)\n sm = Where (c, low, sc)",
    "beside a bias": "b = Mul (inv, low)\n s2 = Add (sc, bias)\n sm = Add (s2, b)",
    "before a bias": "b = Mul (inv, low)\n s2 = Add (sc, b)\n sm = Add (s2, bias)",
    "and moved": "b = Mul (inv, low)\n s2 = Add (sc, b)\n t = Unsqueeze (s2, zero)\n sm = Squeeze (t, zero)",
}
# What lies between the scores and the Softmax, mask included.
_FLOAT = {
    "added": {"b", "sm"},
    "added first": {"b", "sm"},
    "subtracted": {"b", "sm"},
    "chosen": {"low", "sm"},
    "beside a bias": {"b", "sm"},
    "before a bias": {"b", "s2", "sm"},
    "and moved": {"b", "s2", "t", "sm"},
}
_NET = """g (float[n,6,16] x, float[n,6] mask) => (float[n,6,16] y) {{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    sc = MatMul (q, kt)
    row = Unsqueeze (mask, one)
    inv = Sub (unit, row)
    {form}
    p = Softmax <axis = -1> (sm)
    o = MatMul (p, v)
    y = MatMul (o, wo)
}}"""


def _tensors(size: float) -> dict[str, np.ndarray]:
    r = np.random.default_rng(7)
    found = {name: r.normal(0, 0.3, (16, 16)).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    found |= {"low": np.float32(-size), "high": np.float32(size), "unit": np.float32(1)}
    found |= {"one": np.array([1]), "zero": np.array([0]), "bias": r.normal(0, 1, (6, 6)).astype(np.float32)}
    return {name: np.asarray(array) for name, array in found.items()}


def _statistics(text: str, tensors: dict[str, np.ndarray]) -> tuple[ir.Model, dict[str, TensorStatistics]]:
    """Returns a graph, and what running it in onnxruntime with every tensor as an output shows of these."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    model = ir.from_proto(proto)
    for node in proto.graph.node:
        if node.output[0] not in {output.name for output in proto.graph.output}:
            proto.graph.output.add().name = node.output[0]
    r = np.random.default_rng(1)
    feeds = {"x": r.normal(0, 1, (8, 6, 16)), "mask": np.arange(6) < r.integers(2, 7, (8, 1))}
    session = ort.InferenceSession(proto.SerializeToString())
    values = session.run(None, {name: array.astype(np.float32) for name, array in feeds.items()})
    found = {}
    for output, value in zip(session.get_outputs(), values, strict=True):
        if value.dtype == np.float32:
            found[output.name] = TensorStatistics()
            found[output.name].add(value, value)
    return model, found


@pytest.mark.parametrize("form", _FORMS)
@settings(max_examples=6)
@given(size=st.sampled_from([100.0, 1e3, 1e4, 65504.0, 1e7]))
def test_a_mask_of_any_size_and_form_is_found(form: str, size: float) -> None:
    model, statistics = _statistics(_NET.format(form=_FORMS[form]), _tensors(size))
    found = masked_scores(model.graph, statistics)
    assert set(found) == _FLOAT[form]
    assert all("mask" in reason for reason in found.values())


@pytest.mark.parametrize("form", _FORMS)
def test_a_small_bias_is_no_mask(form: str) -> None:
    model, statistics = _statistics(_NET.format(form=_FORMS[form]), _tensors(8.0))
    assert masked_scores(model.graph, statistics) == {}


def test_what_layers_compute_and_what_no_softmax_reads_is_no_mask() -> None:
    tensors = _tensors(1e4)
    tensors["wm"] = np.full((16, 6), -500, np.float32)
    for form in (
        "b = MatMul (x, wm)\n sm = Add (sc, b)",
        "b = Mul (inv, low)\n n = Add (sc, b)\n e = Sigmoid (n)\n sm = Identity (e)",
    ):
        model, statistics = _statistics(_NET.format(form=form), tensors)
        assert masked_scores(model.graph, statistics) == {}


@pytest.mark.parametrize("form", ["added", "chosen", "and moved"])
def test_half_precision_masks_cost_an_accelerator_nothing(run: Any, save: Any, tmp_path: Path, form: str) -> None:
    r = np.random.default_rng(2)
    x = r.normal(0, 2, (48, 6, 16)).astype(np.float32)
    mask = (np.arange(6) < r.integers(2, 7, (48, 1))).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, mask=mask)
    path = save("net.onnx", _NET.format(form=_FORMS[form]), **_tensors(1e4))
    outcome = run("quantize", path, "--calib-data", "data.npz", "--target", "qnn", "--effort", "fast", "--json")
    assert outcome.code == 0, outcome.err
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {"x": x, "mask": mask}
    (expected,) = ort.InferenceSession(path).run(None, feeds)
    (found,) = ort.InferenceSession(path.with_name("net.int8.onnx"), options).run(None, feeds)
    expected = expected.astype(np.float64)
    assert 10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()) > 25
    reasons = {skip["node"]: skip["reason"] for skip in outcome.json["float_nodes"]}
    assert "in a mask" in reasons["n_sm"]
    assert "in a mask" in reasons["n_p"]
