"""Where Q/DQ go for OpenVINO, read from the graph that it executes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

_CONV = "Conv<pads=[1,1,1,1]>"
_HEAD = f"a = {_CONV}(x, w1, b1) r = Relu(a)"
# By name of a pattern: the network, and the operators that have to run on integers.
_PATTERNS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "max pool": (
        f"{_HEAD} p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) y = {_CONV}(p, w2, b2)",
        ("Conv", "MaxPool", "Conv"),
    ),
    "average pool": (
        f"{_HEAD} p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r) y = {_CONV}(p, w2, b2)",
        ("Conv", "AveragePool", "Conv"),
    ),
    "global pool": (
        f"{_HEAD} p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, wg, bg)",
        ("Conv", "GlobalAveragePool", "Flatten", "Gemm"),
    ),
    "residual sum": (
        f"{_HEAD} c = {_CONV}(r, w2, b2) d = Relu(c) e = {_CONV}(d, w3, b3) s = Add(e, r) t = Relu(s) "
        f"y = {_CONV}(t, w2, b1)",
        ("Conv", "Conv", "Conv", "Conv"),
    ),
    "transposed convolution": (
        f"{_HEAD} t = ConvTranspose<strides=[2,2]>(r, wt, b2) u = Relu(t) y = {_CONV}(u, w2, b3)",
        ("Conv", "ConvTranspose", "Conv"),
    ),
    "transposed convolution of both signs": (
        f"a = {_CONV}(x, w1, b1) y = ConvTranspose<strides=[2,2]>(a, wt, b2)",
        ("Conv", "ConvTranspose"),
    ),
    "swish": (f"a = {_CONV}(x, w1, b1) g = Sigmoid(a) m = Mul(a, g) y = {_CONV}(m, w2, b2)", ("Conv", "Conv")),
    "matrix": (
        f"{_HEAD} t = Transpose<perm=[0,2,3,1]>(r) m = MatMul(t, wm) y = Relu(m)",
        ("Conv", "Transpose", "MatMul"),
    ),
}


@pytest.mark.parametrize("pattern", _PATTERNS)
def test_all_of_a_pattern_runs_on_integers(run: Any, network: Any, pattern: str) -> None:
    text, operators = _PATTERNS[pattern]
    path: Path = network("net.onnx", text)
    given = ("--calib-data", "data.npz", "--target", "openvino", "--effort", "fast")
    outcome = run("quantize", path, *given, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["outputs"][0]["sqnr_db"] > 25
    found = run("verify", "net.int8.onnx", "--target", "openvino", "--min-coverage", "100%", "--json")
    assert found.code == 0, found.out
    assert found.json["runtime"] == "openvino"
    counted = {row["operator"]: row["integer"] for row in found.json["operators"]}
    assert counted == {operator: operators.count(operator) for operator in operators}


_ATTENTION = (
    f"{_HEAD} q = {_CONV}(r, w2, b2) k = {_CONV}(r, w3, b3) n = Transpose<perm=[0,1,3,2]>(k) m = MatMul(q, n) "
    f"s = Softmax<axis=-1>(m) o = MatMul(s, r) y = {_CONV}(o, w2, b2)"
)


def test_the_scores_of_an_attention_are_signed_and_its_sums_float(run: Any, network: Any) -> None:
    network("net.onnx", _ATTENTION)
    plan = run("quantize", "net.onnx", "--dry-run", "--target", "openvino", "--json")
    assert plan.code == 0, plan.err
    assert {skip["node"] for skip in plan.json["float_nodes"]} == {"o"}
    assert "behind a Softmax" in plan.json["float_nodes"][0]["reason"]
    kinds = {row["tensor"]: row["type"] for row in plan.json["tensors"] if row["kind"] == "activation"}
    # Q of a moved operand stands before the move, and not behind it.
    assert {tensor for tensor, kind in kinds.items() if kind.startswith("s8")} == {"q", "k"}
    assert kinds.keys() == {"x", "r", "q", "k", "o"}
    given = ("--calib-data", "data.npz", "--target", "openvino", "--effort", "fast")
    outcome = run("quantize", "net.onnx", *given, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["outputs"][0]["sqnr_db"] > 25
    found = run("verify", "net.int8.onnx", "--target", "openvino", "--json").json
    assert [miss["node"] for miss in found["misses"]] == ["o"]


def test_a_product_of_what_others_read_stays_float(run: Any, network: Any) -> None:
    network("net.onnx", f"{_HEAD} n = Transpose<perm=[0,1,3,2]>(r) m = MatMul(r, n) y = {_CONV}(m, w2, b2)")
    plan = run("quantize", "net.onnx", "--dry-run", "--target", "openvino", "--json").json
    assert [skip["node"] for skip in plan["float_nodes"]] == ["m"]
    assert {node["node"] for node in plan["integer_nodes"]} == {"a", "y"}


def test_q_goes_before_a_pool_only_where_nothing_reads_floats(run: Any, network: Any) -> None:
    text = f"{_HEAD} p = GlobalAveragePool(r) g = Sigmoid(p) m = Mul(r, g) y = {_CONV}(m, w2, b2)"
    network("net.onnx", text)
    plan = run("quantize", "net.onnx", "--dry-run", "--target", "openvino", "--json").json
    activations = [row["tensor"] for row in plan["tensors"] if row["kind"] == "activation"]
    assert activations == ["x", "m"]
