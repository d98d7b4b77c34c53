"""Running a graph stretch by stretch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Level
from qtool.search.segmented_runner import SegmentedRunner

_BRANCHES = """
g (float[n,4] x, bool take) => (float[n,4] y)
{
    a = MatMul (x, w1)
    r = Relu (a)
    b = MatMul (r, w2)
    s = Add (b, r)
    c = If (take) <
        then_branch = t () => (float[n,4] u) { u = Mul (s, x) },
        else_branch = e () => (float[n,4] v) { v = Identity (s) }
    >
    d = MatMul (c, w3)
    y = Add (d, a)
}
"""


@pytest.fixture
def model() -> ir.Model:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_BRANCHES}')
    generator = np.random.default_rng(0)
    for name in ("w1", "w2", "w3"):
        proto.graph.initializer.append(numpy_helper.from_array(generator.normal(0, 1, (4, 4)).astype(np.float32), name))
    model = ir.from_proto(proto)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def _feeds() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [
        {"x": generator.normal(0, 1, (rows, 4)).astype(np.float32), "take": np.asarray(take)}
        for rows, take in ((3, True), (2, False))
    ]


def test_what_crosses_a_cut_is_what_the_whole_graph_computes(model: ir.Model) -> None:
    runner = SegmentedRunner(model, ["make_a", "make_b", "make_d"], _feeds())
    crossing = []
    for _ in range(3):
        runner.advance()
        crossing.append({name for batch in runner.held for name in batch})
    # A branch of the If reads x, and the last node reads what the first one makes.
    assert crossing == [{"x", "take"}, {"x", "take", "a", "r"}, {"a", "c"}]
    with watching(model, ["a", "c"]) as whole, open_graph(whole) as session:
        for batch, feed in zip(runner.held, _feeds(), strict=True):
            expected = session.run(feed)
            for name in ("a", "c"):
                np.testing.assert_allclose(batch[name], expected[name], rtol=1e-5, atol=1e-6)


def test_constants_behind_a_cut_may_change_on_the_way(model: ir.Model) -> None:
    runner = SegmentedRunner(model, ["make_a", "make_b", "make_d"], _feeds())
    runner.advance()
    runner.advance()
    before = [np.array(batch["r"]) for batch in runner.held]
    model.graph.initializers["w2"].const_value = ir.tensor(np.zeros((4, 4), np.float32), name="w2")
    runner.advance()
    # With b = 0, s is r; the first batch is multiplied by x.
    first, second = runner.held
    np.testing.assert_allclose(first["c"], before[0] * _feeds()[0]["x"], rtol=1e-6)
    np.testing.assert_allclose(second["c"], before[1], rtol=1e-6)


def test_tensors_that_nothing_reads_any_more_are_let_go(model: ir.Model) -> None:
    runner = SegmentedRunner(model, ["make_d"], _feeds())
    runner.advance()
    held = runner.held_bytes
    runner.advance()
    assert held == sum(2 * rows * 4 * 4 for rows in (3, 2))
    assert runner.held_bytes == 0


_FLOAT_BETWEEN = """
g (float[n,8,6,6] x) => (float[n,8,6,6] y)
{
    a = QuantizeLinear (x, xs, xz)
    b = DequantizeLinear (a, xs, xz)
    c = Conv <pads = [1,1,1,1]> (b, w1, b1)
    d = QuantizeLinear (c, cs, cz)
    e = DequantizeLinear (d, cs, cz)
    f = Conv <pads = [1,1,1,1]> (e, w2, b2)
    y = Add (f, c)
}
"""


@pytest.mark.parametrize("level", ["basic", "all"])
def test_a_float_layer_stays_float_where_its_other_readers_are_in_another_segment(level: Level) -> None:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_FLOAT_BETWEEN}')
    generator = np.random.default_rng(2)
    # One scale for all of these channels would leave nothing of most of them.
    spread = np.logspace(-3, 1, 8).reshape(8, 1, 1, 1)
    arrays = {
        "w1": (generator.normal(0, 1, (8, 8, 3, 3)) * spread).astype(np.float32),
        "w2": generator.normal(0, 1, (8, 8, 3, 3)).astype(np.float32),
        "b1": np.zeros(8, np.float32),
        "b2": np.zeros(8, np.float32),
        "xs": np.float32(0.03),
        "xz": np.uint8(128),
        "cs": np.float32(1.0),
        "cz": np.uint8(128),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    model = ir.from_proto(proto)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    feeds = [{"x": generator.normal(0, 1, (2, 8, 6, 6)).astype(np.float32)}]
    runner = SegmentedRunner(model, ["make_f"], feeds, level=level)
    runner.advance()
    with watching(model, ["c", "e"]) as whole, open_graph(whole, level="none") as session:
        expected = session.run(feeds[0])
    assert runner.held[0].keys() == {"c", "e"}
    for channel in range(8):
        np.testing.assert_allclose(runner.held[0]["c"][:, channel], expected["c"][:, channel], rtol=1e-3, atol=1e-4)
