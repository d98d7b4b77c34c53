"""Graphs that no runtime could run are refused in two lines, whatever is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, parser
from typer.testing import CliRunner

from qtool.cli.app import app

_CIRCLE = "a = Add (x, b) b = Relu (a) y = Relu (b)"


def _model(body: str, *, inputs: str = "float[N,3] x", opset: int = 17) -> onnx.ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => (float[N,3] y) <float[3,3] w = '
        f"{{1,0,0,0,1,0,0,0,1}}> {{ {body} }}"
    )


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (_model(_CIRCLE), "its nodes go in a circle"),
        (_model("y = Add (x, nowhere)"), "reads 'nowhere', which nothing makes"),
        (_model("a = Relu (x)"), "it returns 'y', which nothing makes"),
        (_model("y = Relu (x) y = Neg (x)"), "'y' is made twice"),
        (_model("w = Relu (x) y = MatMul (x, w)"), "'w' is made twice"),
        (_model("y = Relu (x)", inputs="float[N,3] x, float[3] x"), "two inputs are called 'x'"),
        (_model("y = MatMul (x, i)", inputs="float[N,3] x, int64[3,3] i"), "reads float and int64 ('i')"),
        (_model("z = And (x, x) y = Cast <to = 1> (z)"), "takes no floating-point tensor such as 'x'"),
        (_model("y = Reluu (x)"), "is no operator of the standard"),
        (_model("y = Gelu (x)"), "is of opset 20, and the model of opset 17"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "optimize", "quantize", "verify", "explain", "convert"])
def test_a_broken_graph_is_refused_in_two_lines(
    tmp_path: Path, model: onnx.ModelProto, problem: str, command: str
) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    more = {"explain": ["y"], "convert": ["--opset", "18"], "quantize": ["--dry-run"]}.get(command, [])
    result = CliRunner().invoke(app, [command, str(path), *more])
    assert result.exit_code == 2
    *said, first, second = result.stderr.strip().splitlines()
    assert all(line.startswith("target ") for line in said)
    assert first.startswith(f"error: {path} is a damaged ONNX model")
    assert problem in first
    assert second.strip().startswith("fix: ")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_control_characters_of_names_reach_no_terminal(tmp_path: Path) -> None:
    model = _model("a = Relu (x)")
    model.graph.output[0].name = "y\n\x1b[2Jé"
    onnx.save(model, tmp_path / "net.onnx")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "net.onnx")])
    assert result.exit_code == 2
    assert r"it returns 'y\n\x1b[2Jé', which nothing makes" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2


def test_subgraphs_are_looked_at_as_well(tmp_path: Path) -> None:
    text = """
    s = ReduceSum <keepdims = 0> (x)
    zero = Constant <value = float {0.0}> ()
    c = Greater (s, zero)
    y = If (c) <then_branch = t () => (float[N,3] a) { BODY }, else_branch = e () => (float[N,3] d) { d = Neg (x) }>
    """
    for body, problem in (
        ("a = Add (x, lost)", "reads 'lost', which nothing makes"),
        ("b = Add (x, k) k = Relu (b) a = Relu (k)", "its nodes go in a circle"),
    ):
        path = tmp_path / "net.onnx"
        onnx.save(_model(text.replace("BODY", body)), path)
        result = CliRunner().invoke(app, ["inspect", str(path)])
        assert result.exit_code == 2
        assert problem in result.stderr


def test_what_runtimes_take_is_taken(tmp_path: Path) -> None:
    unsorted = _model("y = Relu (a) a = MatMul (x, w)")
    own = _model("y = SimplifiedLayerNormalization (x, s)", inputs="float[N,3] x, float[3] s")
    foreign = _model("y = my.ops.Anything (x)")
    foreign.opset_import.add(domain="my.ops", version=1)
    mixed = _model("y = Pow (x, i)", inputs="float[N,3] x, int64 i")
    assert mixed.graph.input[1].type.tensor_type.elem_type == TensorProto.INT64
    for model in (unsorted, own, foreign, mixed):
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        result = CliRunner().invoke(app, ["inspect", str(path), "--json"])
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)
