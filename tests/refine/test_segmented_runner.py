"""Running a graph stretch by stretch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.runtime.graphs import open_graph, watching
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
