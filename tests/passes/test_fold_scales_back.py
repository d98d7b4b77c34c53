"""Numbers that multiply whole tensors become part of the layers that these come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qtool.passes.quantization.fold_scales_back import FoldScalesBack
from tests.graphs_read import operators_of

Parsed = Callable[..., onnx.ModelProto]
Applied = Callable[..., ir.Model]
Arrays = Callable[..., npt.NDArray[np.float32]]

_ATTENTION = """
g (float[1,6,8] x) => (float[1,2,6,6] y) {
    qm = MatMul (x, wq)
    qb = Add (bq, qm)
    qr = Reshape (qb, heads)
    q = Transpose <perm = [0,2,1,3]> (qr)
    km = MatMul (x, wk)
    kr = Reshape (km, heads)
    k = Transpose <perm = [0,2,3,1]> (kr)
    scores = MatMul (q, k)
    y = Mul (scores, half)
}
"""
_FACTOR = np.float32(0.353)


@pytest.fixture
def tensors(random_array: Arrays) -> dict[str, np.ndarray]:
    return {
        "wq": random_array(8, 8),
        "bq": random_array(8),
        "wk": random_array(8, 8),
        "heads": np.array([1, 6, 2, 4], np.int64),
        "half": np.array(_FACTOR),
    }


def test_the_scale_of_scores_goes_into_the_queries(
    parsed: Parsed, applied: Applied, tensors: dict[str, np.ndarray]
) -> None:
    model = parsed(_ATTENTION, **tensors)
    after = applied(model, FoldScalesBack())
    assert "Mul" not in operators_of(after)
    stored = {np.float32(abs(value.const_value.numpy()).max()) for value in after.graph.initializers.values()}
    assert np.float32(abs(tensors["wq"] * _FACTOR).max()) in stored
    assert np.float32(abs(tensors["wk"]).max()) in stored


def test_scores_that_somebody_else_reads_keep_their_scale(
    parsed: Parsed, applied: Applied, tensors: dict[str, np.ndarray]
) -> None:
    text = _ATTENTION.replace("=> (float[1,2,6,6] y)", "=> (float[1,2,6,6] y, float[1,2,6,6] scores)")
    assert "Mul" in operators_of(applied(parsed(text, **tensors), FoldScalesBack()))


def test_a_weight_that_two_layers_share_keeps_its_values(
    parsed: Parsed, applied: Applied, random_array: Arrays
) -> None:
    text = "g (float[6,8] x) => (float[6,8] y) { a = MatMul (x, w) s = Mul (a, c) y = MatMul (s, w) }"
    model = parsed(text, w=random_array(8, 8), c=np.array(_FACTOR))
    assert "Mul" in operators_of(applied(model, FoldScalesBack()))


def test_a_factor_for_each_channel_stays_where_it_is(
    parsed: Parsed, applied: Applied, tensors: dict[str, np.ndarray]
) -> None:
    tensors["half"] = np.linspace(0.5, 1.0, 6, dtype=np.float32)
    assert "Mul" in operators_of(applied(parsed(_ATTENTION, **tensors), FoldScalesBack()))


def test_a_number_with_more_axes_than_the_tensor_stays(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    text = "g (float[6,8] x) => (float[1,6,8] y) { a = MatMul (x, w) y = Mul (a, c) }"
    model = parsed(text, w=random_array(8, 8), c=np.full((1, 1, 1), _FACTOR))
    assert "Mul" in operators_of(applied(model, FoldScalesBack()))


def test_a_gemm_takes_the_factor_for_its_bias_too(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    text = """g (float[1,6,8] x) => (float[1,6,8] y) {
        f = Reshape (x, flat)  a = Gemm <alpha = 0.5, beta = 2.0> (f, w, b)  r = Reshape (a, back)  y = Mul (c, r) }"""
    shapes = {"flat": np.array([6, 8]), "back": np.array([1, 6, 8])}
    model = parsed(text, w=random_array(8, 8), b=random_array(8), c=np.array(_FACTOR), **shapes)
    after = applied(model, FoldScalesBack())
    assert operators_of(after) == ["Reshape", "Gemm", "Reshape"]
