"""Channels first and channels last: what is left of Transpose nodes, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qtool.passes.layout.permutations import between, identity, inverse, then, with_new, without
from qtool.passes.layout.to_nchw import ToNchw
from qtool.passes.layout.to_nhwc import ToNhwc
from tests.layout.random_graphs import SHAPE, random_model

# As TensorFlow's layers look: channels last outside of them, a squeeze-and-excitation block, a residual sum, a mean.
_CHANNELS_LAST = """network (float[batch,8,8,3] image) => (float[batch,4] scores, float[batch,8,8,8] features) {
    t1 = Transpose <perm = [0,3,1,2]> (image)
    c1 = Conv <pads = [1,1,1,1]> (t1, w1)
    u1 = Transpose <perm = [0,2,3,1]> (c1)
    a1 = Add (u1, bias)
    r1 = Relu (a1)
    m1 = ReduceMean <keepdims = 1> (r1, space)
    t2 = Transpose <perm = [0,3,1,2]> (m1)
    c2 = Conv (t2, w2)
    u2 = Transpose <perm = [0,2,3,1]> (c2)
    s2 = Sigmoid (u2)
    e = Mul (r1, s2)
    p = Pad (e, pads)
    t3 = Transpose <perm = [0,3,1,2]> (p)
    c3 = Conv (t3, w3)
    u3 = Transpose <perm = [0,2,3,1]> (c3)
    features = Add (u3, r1)
    m2 = ReduceMean <keepdims = 0> (features, space)
    scores = MatMul (m2, w4)
}"""


@pytest.fixture
def channels_last(graph: Any) -> onnx.ModelProto:
    """A network as TensorFlow's exporters write them, on ``image`` (batch, 8, 8, 3)."""
    generator = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "bias": (8,), "w2": (8, 8, 1, 1), "w3": (8, 8, 3, 3), "w4": (8, 4)}
    return graph(
        _CHANNELS_LAST,
        space=np.array([1, 2]),
        pads=np.array([0, 1, 1, 0, 0, 1, 1, 0]),
        **{name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()},
    )


def _close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(np.abs(other).max(initial=1.0)))


def test_only_those_at_inputs_and_outputs_are_left(
    channels_last: onnx.ModelProto, rewritten: Any, outputs: Any, count: Any
) -> None:
    made = rewritten(channels_last, ToNchw())
    assert [
        (node.op_type, node.input[0], node.output[0]) for node in made.graph.node if node.op_type == "Transpose"
    ] == [
        ("Transpose", "image", made.graph.node[0].output[0]),
        ("Transpose", "features_stored", "features"),
    ]
    feeds = {"image": np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)}
    _close(outputs(made, feeds), outputs(channels_last, feeds))


def test_the_command_says_how_many_are_left(run: Any, tmp_path: Path, channels_last: onnx.ModelProto) -> None:
    onnx.save(channels_last, tmp_path / "last.onnx")
    shown = run("optimize", "last.onnx", "--passes", "to-nchw", "-o", "first.onnx")
    assert shown.code == 0, shown.err
    assert "to-nchw: 6 → 2 Transpose nodes" in shown.out
    passes = run("optimize", "last.onnx", "--passes", "to-nchw", "--dry-run", "--json").json["passes"]
    assert [step["remark"] for step in passes] == ["6 → 2 Transpose nodes"]


def test_channels_come_last_when_the_other_passes_are_done(run: Any, tmp_path: Path, graph: Any) -> None:
    text = """two (float[1,2,4,4] x) => (float[1,2,4,4] y) {
        a = Conv (x, w)  b = Conv (a, w)  c = Relu (b)  d = Conv (c, w)  y = Sigmoid (d)
    }"""
    onnx.save(graph(text, w=np.full((2, 2, 1, 1), 0.5, np.float32)), tmp_path / "two.onnx")
    options = ("--passes", "default", "--passes", "to-nhwc", "--dry-run", "--json")
    passes = [step["name"] for step in run("optimize", "two.onnx", *options).json["passes"]]
    assert passes.count("to-nhwc") == 1
    assert passes[-1] == "to-nhwc"


@pytest.mark.parametrize("part", range(10))
def test_random_graphs_keep_their_outputs_and_lose_transposes(
    part: int, rewritten: Any, outputs: Any, count: Any
) -> None:
    lost = 0
    for seed in range(part * 30, part * 30 + 30):
        model = random_model(seed)
        made = rewritten(model, ToNchw())
        feeds = {"x": np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)}
        _close(outputs(made, feeds), outputs(model, feeds))
        assert count(made) <= count(model)
        assert count(rewritten(made, ToNchw())) == count(made)
        lost += count(model) - count(made)
    assert lost > 0


@pytest.mark.parametrize("seed", range(40))
def test_channels_last_and_back_is_where_it_began(seed: int, rewritten: Any, outputs: Any, count: Any) -> None:
    model = random_model(seed)
    last = rewritten(model, ToNhwc())
    feeds = {"x": np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)}
    _close(outputs(last, feeds), outputs(model, feeds))
    assert rewritten(last, ToNhwc()) == last
    assert count(rewritten(last, ToNchw())) <= count(model)


def test_all_between_layers_works_on_channels_last(graph: Any, rewritten: Any, outputs: Any) -> None:
    model = graph(
        """network (float[1,3,8,8] image) => (float[1,8] y) {
            c1 = Conv (image, w1)
            r1 = Relu (c1)
            a1 = Add (r1, bias)
            c2 = Conv (a1, w2)
            r2 = Relu (c2)
            y = ReduceMean <keepdims = 0> (r2, space)
        }""",
        w1=np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32),
        w2=np.random.default_rng(1).normal(size=(8, 8, 3, 3)).astype(np.float32),
        bias=np.random.default_rng(2).normal(size=(8, 1, 1)).astype(np.float32),
        space=np.array([2, 3]),
    )
    made = rewritten(model, ToNhwc())
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in made.graph.value_info
    }
    assert (shapes["c1"], shapes["r1"], shapes["a1"], shapes["c2"], shapes["r2"]) == (
        [1, 8, 6, 6],
        [1, 6, 6, 8],
        [1, 6, 6, 8],
        [1, 8, 4, 4],
        [1, 4, 4, 8],
    )
    feeds = {"image": np.random.default_rng(3).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    _close(outputs(made, feeds), outputs(model, feeds))


def test_what_a_branch_reads_stays_as_it_is(graph: Any, rewritten: Any, outputs: Any) -> None:
    model = graph(
        """branch (float[1,2,3,4] x, bool take) => (float[1,2,3,4] y) {
            a = Transpose <perm = [0,2,3,1]> (x)
            b = Relu (a)
            c = Transpose <perm = [0,3,1,2]> (b)
            d = If (take) <
                then_branch = one () => (float[1,3,4,2] p) { p = Neg (b) },
                else_branch = two () => (float[1,3,4,2] q) { q = Identity (a) }
            >
            e = Transpose <perm = [0,3,1,2]> (d)
            y = Add (c, e)
        }"""
    )
    made = rewritten(model, ToNchw())
    for take in (True, False):
        feeds = {"x": np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32), "take": np.array(take)}
        _close(outputs(made, feeds), outputs(model, feeds))


def test_a_graph_without_transposes_stays(graph: Any) -> None:
    import onnx_ir as ir

    model = graph("plain (float[2] x) => (float[2] y) { y = Neg (x) }")
    layout_pass = ToNchw()
    assert not layout_pass(ir.from_proto(model)).modified
    assert layout_pass.remark is None


def test_permutations_agree_with_those_of_arrays() -> None:
    array = np.arange(24).reshape(2, 3, 4, 1)
    one, two = (2, 0, 3, 1), (1, 3, 0, 2)
    np.testing.assert_array_equal(array.transpose(one).transpose(two), array.transpose(then(one, two)))
    np.testing.assert_array_equal(array.transpose(one).transpose(inverse(one)), array)
    assert then(one, inverse(one)) == identity(4)
    # Kept with `one`, wanted with `two`: both become the same logical tensor.
    np.testing.assert_array_equal(array.transpose(between(one, two)).transpose(two), array.transpose(one))
    logical = array.transpose(one)
    gone = [axis for axis in range(4) if logical.shape[axis] == 1]
    np.testing.assert_array_equal(logical.squeeze(tuple(gone)), array.squeeze(3).transpose(without(one, gone)))
    for added in ([0], [2], [1, 4]):
        wider, stored = np.expand_dims(logical, added), np.expand_dims(array, added)
        np.testing.assert_array_equal(wider, stored.transpose(with_new(one, added)))
