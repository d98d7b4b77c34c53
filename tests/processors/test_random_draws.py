"""Models that draw random numbers are compared with the same draws on both sides, so that no noise is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from qtool.metrics.fidelity import FidelityMeter
from qtool.runtime.graphs import open_graph
from qtool.runtime.steady_draws import draws, file_draws, with_steady_draws

_KINDS = {
    "normal": "y = RandomNormal <shape = [40, 50], mean = 2.0, scale = 3.0> ()",
    "uniform": "y = RandomUniform <shape = [40, 50], low = -1.0, high = 3.0> ()",
    "normal like": "y = RandomNormalLike <mean = 2.0, scale = 3.0> (x)",
    "uniform like": "y = RandomUniformLike <low = -1.0, high = 3.0> (x)",
    "double": "d = RandomNormalLike <dtype = 11, mean = 2.0, scale = 3.0> (x)\n y = Cast <to = 1> (d)",
    "of integers": "i = Cast <to = 7> (x)\n y = RandomUniformLike <dtype = 1, low = -1.0, high = 3.0> (i)",
}
# Mean and standard deviation.
_MOMENTS = {"n": (2.0, 3.0), "u": (1.0, 4.0 / 12.0**0.5), "d": (2.0, 3.0), "o": (1.0, 4.0 / 12.0**0.5)}


def _model(body: str, *, opset: int = 17, output: str = "float[n,m] y") -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[n,m] x) => ({output}) {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


def _runs(model: ir.Model, x: np.ndarray, count: int = 2) -> list[np.ndarray]:
    with open_graph(model, threads=1) as session:
        return [session.run({"x": x} if session.inputs else {})["y"] for _ in range(count)]


@pytest.mark.parametrize("opset", [11, 13, 17, 22])
@pytest.mark.parametrize("kind", _KINDS)
def test_draws_repeat_and_are_of_their_distribution(kind: str, opset: int) -> None:
    x = np.zeros((40, 50), np.float32)
    first, second = _runs(_model(_KINDS[kind], opset=opset), x)
    (again,) = _runs(_model(f"unused = Identity (x)\n {_KINDS[kind]}", opset=opset), x, 1)
    assert first.shape == (40, 50)
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    assert np.array_equal(first, again)
    mean, deviation = _MOMENTS[kind[0]]
    # Five standard errors of 2,000 draws.
    assert first.mean() == pytest.approx(mean, abs=5 * deviation / 2000**0.5)
    assert first.std() == pytest.approx(deviation, rel=0.1)
    assert len(np.unique(first)) > 1990
    rows = (first - first.mean()).reshape(40, 50)
    assert abs(np.corrcoef(rows.ravel()[:-1], rows.ravel()[1:])[0, 1]) < 0.12


def test_two_nodes_draw_apart() -> None:
    body = "a = RandomNormalLike (x)\n b = RandomNormalLike (x)\n y = Concat <axis = 1> (a, b)"
    (both,) = _runs(_model(body, output="float[n,k] y"), np.zeros((30, 40), np.float32), 1)
    assert abs(np.corrcoef(both[:, :40].ravel(), both[:, 40:].ravel())[0, 1]) < 0.15


@settings(max_examples=20)
@given(shape=st.lists(st.integers(0, 6), min_size=0, max_size=4).map(tuple))
def test_any_shape_is_drawn(shape: tuple[int, ...]) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float y) { y = RandomUniformLike (x) }'
    proto = parser.parse_model(text)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    found = _runs(ir.from_proto(proto), np.zeros(shape, np.float32), 1)[0]
    assert found.shape == shape
    assert ((found > 0) & (found < 1)).all()


def test_chances_and_classes_repeat_from_session_to_session() -> None:
    body = "p = Sigmoid (x)\n b = Bernoulli (p)\n c = Multinomial <sample_size = 3> (x)\n f = Cast <to = 1> (c)\n"
    body += "y = Concat <axis = 1> (b, f)"
    x = np.random.default_rng(0).normal(0, 2, (60, 20)).astype(np.float32)
    one, other = (_runs(_model(body, output="float[n,k] y"), x, 1)[0] for _ in range(2))
    assert np.array_equal(one, other)
    chances = 1 / (1 + np.exp(-x))
    assert set(np.unique(one[:, :20])) == {0.0, 1.0}
    assert one[:, :20].mean() == pytest.approx(chances.mean(), abs=0.06)


def test_draws_inside_a_branch_are_seen_and_repeat() -> None:
    body = """s = ReduceSum <keepdims = 0> (x)
    z = Constant <value = float {0.0}> ()
    c = GreaterOrEqual (s, z)
    y = If (c) <then_branch = t () => (float[n,m] t1) { t1 = RandomNormalLike (x) },
                else_branch = e () => (float[n,m] e1) { e1 = Identity (x) }>"""
    model = _model(body)
    assert draws(model)
    first, second = _runs(model, np.zeros((9, 11), np.float32))
    assert np.array_equal(first, second)
    assert first.std() > 0.5


def test_a_model_is_left_as_it_is_and_one_without_draws_is_no_copy(tmp_path: Path) -> None:
    model = _model(_KINDS["normal like"])
    before = ir.to_proto(model).SerializeToString()
    assert not draws(with_steady_draws(model))
    assert ir.to_proto(model).SerializeToString() == before
    onnx.save(ir.to_proto(model), tmp_path / "draws.onnx")
    assert file_draws(tmp_path / "draws.onnx")
    plain = _model("y = Relu (x)")
    assert with_steady_draws(plain) is plain
    onnx.save(ir.to_proto(plain), tmp_path / "plain.onnx")
    assert not file_draws(tmp_path / "plain.onnx")


_NOISY = """g (float[n,3,8,8] x) => (float[n,8,6,6] y) {
    u = RandomUniformLike <low = -1.0, high = 1.0> (x)
    s = Add (x, u)
    a = Conv <pads = [1, 1, 1, 1]> (s, w, b)
    r = Relu (a)
    y = Conv (r, v, c)
}"""


@pytest.fixture
def noisy(save: Any, tmp_path: Path) -> Path:
    """A network of two layers that adds noise as strong as its input, and data for it."""
    r = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 8, 3, 3), "c": (8,)}
    weights = {name: (r.normal(0, 0.3, shape)).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "data.npz", x=r.normal(0, 0.5, (64, 3, 8, 8)).astype(np.float32))
    path: Path = save("noisy.onnx", _NOISY, **weights)
    return path


def _without_noise(path: Path) -> ir.Model:
    model = onnx.load(path)
    (node,) = [node for node in model.graph.node if node.op_type.startswith("Random")]
    zeros = onnx.helper.make_node("Mul", [node.input[0], "no_noise"], list(node.output), name=node.name)
    node.CopyFrom(zeros)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "no_noise"))
    return ir.from_proto(model)


def test_what_is_told_of_a_quantized_model_is_its_own_noise(run: Any, noisy: Path, tmp_path: Path) -> None:
    outcome = run("quantize", noisy, "--calib-data", "data.npz", "--target", "x86", "--effort", "fast", "--json")
    assert outcome.code == 0, outcome.err
    assert "draws random numbers" in outcome.err
    # Without the noise the outputs are smaller, the integers' ranges the same.
    feed = {"x": np.load(tmp_path / "data.npz")["x"]}
    meter = FidelityMeter()
    with (
        open_graph(_without_noise(noisy)) as floats,
        open_graph(_without_noise(noisy.with_name("noisy.int8.onnx"))) as integers,
    ):
        meter.add(floats.run(feed), integers.run(feed))
    alone = meter.results()[0].sqnr_db
    assert alone is not None
    assert outcome.json["outputs"][0]["sqnr_db"] > alone - 2.0
    assert onnx.load(noisy.with_name("noisy.int8.onnx")).graph.node[0].op_type == "RandomUniformLike"
    report = run("report", noisy, noisy.with_name("noisy.int8.onnx"), "--data", "data.npz", "--no-latency", "--json")
    assert report.code == 0, report.err
    assert report.json["quantized_models"][0]["fidelity"][0]["sqnr_db"] > alone - 2.0


def test_a_model_is_the_same_as_itself(run: Any, noisy: Path) -> None:
    report = run("report", noisy, noisy, "--data", "data.npz", "--no-latency", "--fail-if", "max_abs_error > 0")
    assert report.code == 0, report.err
    assert "draws random numbers" in report.err


@pytest.mark.parametrize("cut", ["s", "u", "r"])
def test_parts_of_a_model_draw_as_the_whole_does(run: Any, noisy: Path, cut: str) -> None:
    outcome = run("split", noisy, "--at", cut, "-o", "parts")
    assert outcome.code == 0, outcome.err
    assert "draws random numbers" in outcome.err


@pytest.mark.parametrize(
    "command",
    [("optimize", "--data", "data.npz"), ("optimize",), ("convert", "--opset", "18"), ("convert", "--fp16")],
)
def test_changes_of_the_graph_are_proved_in_spite_of_noise(run: Any, noisy: Path, command: tuple[str, ...]) -> None:
    outcome = run(command[0], noisy, *command[1:], "-o", "changed.onnx")
    assert outcome.code == 0, outcome.err
    operators = [node.op_type for node in onnx.load(noisy.with_name("changed.onnx")).graph.node]
    assert "RandomUniformLike" in operators
