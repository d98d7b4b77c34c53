"""Rules of TensorRT and QNN: each finds what breaks it, and nothing in a graph that keeps to all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser
from typer.testing import CliRunner

from qtool.backends.qnn.rules import RULES as QNN
from qtool.backends.registry import BACKENDS, backend_named
from qtool.backends.tensorrt.rules import RULES as TENSORRT
from qtool.cli.app import app
from qtool.passes.normalization.normalize import ConstantsToInitializers

_TENSORRT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float s = {0.1}, int8 z = {0}, int8[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2] ws = {0.1, 0.2}, int8[2] wz = {0, 0},
 float[2] b = {0.5, 0.6}, int32[2] bi = {1, 2}, float[2] bs = {0.01, 0.02}, uint8 uz = {128},
 int8 odd = {3}, float neg = {-0.1},
 float[2] as2 = {0.1, 0.2}, int8[2] az2 = {0, 0}, uint8[2, 2, 1, 1] wu = {1, 2, 3, 4}, uint8[2] wuz = {128, 128}>
{
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear<axis = 0>(w, ws, wz)
    c = Conv(xd, wd, b)
    y = Relu(c)
}"""
_QNN = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float s = {0.1}, uint8 z = {100}, int8[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2] ws = {0.1, 0.2}, int8[2] wz = {0, 0},
 int32[2] bi = {1, 2}, float[2] bs = {0.01, 0.02}, int8 sz = {3}, float neg = {-0.1}, int8[2] wodd = {0, 2},
 float[2] as2 = {0.1, 0.2}, uint8[2] az2 = {0, 0}, float[2] boff = {0.01, 0.03}, float[2] bf = {0.5, 0.6},
 uint16 z16 = {1}, int8[1, 4, 4] m = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7},
 float[4] ms = {0.1, 0.2, 0.3, 0.4},
 int8[4] mz = {0, 0, 0, 0}, int16[2, 2, 1, 1] w16 = {1, 2, 3, 4}, int16[2] w16z = {0, 0}>
{
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear<axis = 0>(w, ws, wz)
    bd = DequantizeLinear<axis = 0>(bi, bs)
    c = Conv(xd, wd, bd)
    r = Relu(c)
    rq = QuantizeLinear(r, s, z)
    y = DequantizeLinear(rq, s, z)
}"""


def _model(text: str, *changes: tuple[str, str]) -> ir.Model:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    parsed = parser.parse_model(text)
    for node in parsed.graph.node:
        node.name = f"{node.output[0]}_node"
    model = ir.from_proto(parsed)
    ConstantsToInitializers()(model)
    return model


def _found(backend: str, model: ir.Model) -> set[tuple[str, str]]:
    violations = backend_named(backend).violations(model)
    assert all(one.problem and one.fix and one.operator for one in violations)
    return {(one.rule, one.node) for one in violations}


def test_graphs_that_keep_to_the_rules_have_no_violations() -> None:
    assert _found("tensorrt", _model(_TENSORRT)) == set()
    assert _found("qnn", _model(_QNN)) == set()


_TENSORRT_CASES = [
    ("signed types", {"xq_node", "xd_node", "zero"}, [("x, s, z)", "x, s, uz)"), ("xq, s, z)", "xq, s, uz)")]),
    (
        "signed types",
        {"bd_node"},
        [("c = Conv(xd, wd, b)", "bd = DequantizeLinear<axis = 0>(bi, bs) c = Conv(xd, wd, bd)")],
    ),
    ("zero points", {"xq_node", "xd_node"}, [("x, s, z)", "x, s, odd)"), ("xq, s, z)", "xq, s, odd)")]),
    ("constant scales", {"xd_node"}, [("xq, s, z)", "xq, neg, z)")]),
    (
        "constant scales",
        {"xq_node"},
        [("xq = Q", "dyn = ReduceMax<keepdims = 0>(x) xq = Q"), ("x, s, z)", "x, dyn, z)")],
    ),
    (
        "scales per channel",
        {"xq_node", "xd_node"},
        [
            ("xq = QuantizeLinear(x, s, z)", "xq = QuantizeLinear<axis = 1>(x, as2, az2)"),
            ("xd = DequantizeLinear(xq, s, z)", "xd = DequantizeLinear<axis = 1>(xq, as2, az2)"),
        ],
    ),
    ("scales per channel", {"wd_node"}, [("wd = DequantizeLinear<axis = 0>", "wd = DequantizeLinear<axis = 1>")]),
    ("known operators", {"d_node"}, [("y = Relu(c)", "y = Relu(c) d, ds, dz = DynamicQuantizeLinear(c)")]),
    ("quantized inputs", {"c_node"}, [("Conv(xd, wd, b)", "Conv(x, wd, b)")]),
    ("opset", {"wd_node"}, [('"" : 21', '"" : 12')]),
]
_QNN_CASES = [
    ("fixed shapes", {"xq_node"}, [("float[1, 2, 4, 4] x", "float[n, 2, 4, 4] x")]),
    ("known operators", {"d_node"}, [("r = Relu(c)", "r = Relu(c) d, ds, dz = DynamicQuantizeLinear(x)")]),
    ("activation types", {"xq_node", "xd_node"}, [("x, s, z)", "x, s, sz)"), ("xq, s, z)", "xq, s, sz)")]),
    ("activation scales", {"xd_node"}, [("xq, s, z)", "xq, neg, z)")]),
    (
        "activation scales",
        {"xq_node", "xd_node"},
        [
            ("xq = QuantizeLinear(x, s, z)", "xq = QuantizeLinear<axis = 1>(x, as2, az2)"),
            ("xd = DequantizeLinear(xq, s, z)", "xd = DequantizeLinear<axis = 1>(xq, as2, az2)"),
        ],
    ),
    ("weights", {"wd_node"}, [("(w, ws, wz)", "(w, ws, wodd)")]),
    ("weights", {"wd_node"}, [("(w, ws, wz)", "(w16, ws, w16z)")]),
    ("weights", {"wd_node"}, [("wd = DequantizeLinear<axis = 0>", "wd = DequantizeLinear<axis = 1>")]),
    (
        "weights",
        {"md_node"},
        [("y = D", "md = DequantizeLinear<axis = 2>(m, ms, mz) p = MatMul(xd, md) pq = QuantizeLinear(p, s, z) y = D")],
    ),
    ("biases", {"bd_node"}, [("(bi, bs)", "(bi, boff)")]),
    ("whole groups", {"c_node"}, [("Conv(xd, wd, bd)", "Conv(x, wd, bd)")]),
    ("whole groups", {"c_node"}, [("r = Relu(c)", "r = Sigmoid(c)")]),
    (
        "sixteen bits",
        {"rq_node"},
        [
            ("r = Relu(c)", "t = Relu(c) tq = QuantizeLinear(t, s, z) r = Sigmoid(c)"),
            ("r, s, z)", "r, s, z16)"),
            ("rq, s, z)", "rq, s, z16)"),
        ],
    ),
    (
        "sixteen bits",
        {"rq_node", "y_node"},
        [('"" : 21', '"" : 19'), ("r, s, z)", "r, s, z16)"), ("rq, s, z)", "rq, s, z16)")],
    ),
]


@pytest.mark.parametrize(("rule", "nodes", "changes"), _TENSORRT_CASES)
def test_tensorrt_names_the_nodes_that_break_a_rule(rule: str, nodes: set[str], changes: list[tuple[str, str]]) -> None:
    found = _found("tensorrt", _model(_TENSORRT, *changes))
    assert {node for name, node in found if name == rule} == nodes - {"zero"}


@pytest.mark.parametrize(("rule", "nodes", "changes"), _QNN_CASES)
def test_qnn_names_the_nodes_that_break_a_rule(rule: str, nodes: set[str], changes: list[tuple[str, str]]) -> None:
    found = _found("qnn", _model(_QNN, *changes))
    assert {node for name, node in found if name == rule} == nodes


def test_every_rule_is_tried() -> None:
    assert {rule for rule, _, _ in _TENSORRT_CASES} == set(TENSORRT)
    assert {rule for rule, _, _ in _QNN_CASES} == set(QNN)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_finds_nothing_in_a_graph_without_integers(name: str) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }'
    assert _found(name, _model(text)) == set()


def _verified(path: Path, target: str) -> Any:
    return CliRunner().invoke(app, ["verify", str(path), "--target", target, "--json"])


def test_verify_lists_violations_and_exits_with_one(tmp_path: Path) -> None:
    for name, text in (("tensorrt", _TENSORRT), ("qnn", _QNN)):
        onnx.save(ir.to_proto(_model(text)), tmp_path / f"{name}.onnx")
    for name in ("tensorrt", "qnn"):
        result = _verified(tmp_path / f"{name}.onnx", name)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert (report["violations"], report["placement_only"]) == ([], True)
    result = _verified(tmp_path / "qnn.onnx", "tensorrt")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)["violations"]
    assert {row["rule"] for row in rows} == {"signed types", "zero points"}
    assert set(rows[0]) == {"rule", "node", "operator", "problem", "fix"}
    shown = CliRunner().invoke(app, ["verify", str(tmp_path / "qnn.onnx"), "--target", "tensorrt"])
    assert "not run on TensorRT" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
def test_what_is_placed_only_says_so(target: str, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 2, 1, 1] w = {1, 2, 3, 4}> { y = Conv(x, w) }"""
    onnx.save(parser.parse_model(text), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((8, 2, 4, 4)).astype(np.float32))
    options = ["--calib-data", str(tmp_path / "data.npz"), "--target", target, "--effort", "fast", "--smallest"]
    source, made = str(tmp_path / "net.onnx"), tmp_path / "made.onnx"
    planned = CliRunner().invoke(app, ["quantize", source, *options, "--dry-run", "--json"])
    assert json.loads(planned.stdout)["placement_only"] is True
    shown = CliRunner().invoke(app, ["quantize", source, *options, "-o", str(made)])
    assert shown.exit_code == 0, shown.output
    assert "not run on" in shown.output
    manifest = json.loads((tmp_path / "made.manifest.json").read_text(encoding="utf-8"))
    assert '"placement_only": true' in json.dumps(manifest)
    assert _verified(made, target).exit_code == 0
    assert "placement only" in " ".join(CliRunner().invoke(app, ["quantize", "--help"]).stdout.split())
