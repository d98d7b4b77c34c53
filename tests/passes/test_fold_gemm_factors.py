"""The factors of a Gemm become part of its weights and bias, and its product runs on integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qtool.passes.quantization.fold_gemm_factors import FoldGemmFactors

_FACTORS = st.one_of(st.none(), st.sampled_from([0.0, 1.0, -1.0, 0.125, 3.0, 2.5]))
_BIASES = {"none": None, "number": (), "vector of one": (1,), "row": (5,), "matrix": (1, 5), "column": (2, 1)}


@given(
    alpha=_FACTORS,
    beta=_FACTORS,
    bias=st.sampled_from(list(_BIASES)),
    turned=st.tuples(st.booleans(), st.booleans()),
    computed=st.sampled_from(["neither", "weights", "bias"]),
)
def test_a_gemm_computes_what_it_did(
    alpha: float | None, beta: float | None, bias: str, turned: tuple[bool, bool], computed: str
) -> None:
    rng = np.random.default_rng(2)
    shape = _BIASES[bias]
    arrays = {"x": (3, 2) if turned[0] else (2, 3), "w": (5, 3) if turned[1] else (3, 5)}
    tensors = {name: rng.normal(size=dims).astype(np.float32) for name, dims in arrays.items()}
    if shape is not None:
        tensors["c"] = rng.normal(size=shape).astype(np.float32)
    inputs = {"x", {"neither": "x", "weights": "w", "bias": "c"}[computed]} & tensors.keys()
    given_factors = {name: factor for name, factor in (("alpha", alpha), ("beta", beta)) if factor is not None}
    graph = helper.make_graph(
        [helper.make_node("Gemm", list(tensors), ["y"], transA=int(turned[0]), transB=int(turned[1]), **given_factors)],
        "g",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, tensors[name].shape) for name in sorted(inputs)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items() if name not in inputs],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {name: tensors[name] for name in inputs}
    (expected,) = ReferenceEvaluator(proto).run(None, feeds)
    changed = ir.to_proto(FoldGemmFactors()(ir.from_proto(proto)).model)
    onnx.checker.check_model(changed, full_check=True)
    left = {attribute.name for attribute in changed.graph.node[0].attribute if attribute.name in ("alpha", "beta")}
    assert left <= ({"alpha"} if "w" in inputs else set()) | ({"beta"} if "c" in inputs else set()) | {
        name for name, factor in given_factors.items() if factor == 1.0
    }
    (result,) = ReferenceEvaluator(changed).run(None, feeds)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_layers_with_factors_run_on_integers(run: Any, save: Callable[..., Path], tmp_path: Path, scheme: str) -> None:
    rng = np.random.default_rng(6)
    shapes = {"w1": (24, 16), "b1": (24,), "w2": (24, 20), "b2": (1, 20), "w3": (20, 8), "b3": ()}
    path = save(
        "net.onnx",
        """g (float[n,16] x) => (float[n,8] y) {
            a = Gemm <alpha = 2.5, beta = 0.5, transB = 1> (x, w1, b1)  b = Relu (a)
            c = Gemm <alpha = 0.3, beta = 3.0> (b, w2, b2)  d = Relu (c)
            y = Gemm <alpha = -1.0, beta = 2.0> (d, w3, b3)
        }""",
        **{name: np.asarray(rng.normal(0, 0.3, shape), np.float32) for name, shape in shapes.items()},
    )
    x = rng.normal(size=(64, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    options = {"static": ["--calib-data", "x.npz", "--max-float", "0"], "dynamic": ["--scheme", "dynamic"]}
    outcome = run("quantize", path, *options[scheme], "--target", "x86-avx2", "-o", "q.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["coverage"]["integer_nodes"] == 3
    expected, result = (onnxruntime.InferenceSession(name).run(None, {"x": x})[0] for name in (path, "q.onnx"))
    assert np.square(expected).sum() > 1000 * np.square(expected - result).sum()
