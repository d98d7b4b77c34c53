"""What keeping layers float costs, beside counts made by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.plan import build_plan
from qtool.schemes import PRESETS
from qtool.search.float_cost import FloatCost, float_cost
from qtool.search.node_groups import node_groups
from qtool.selection import Selection
from qtool.workflows.prepare import prepare

_GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,5] y)
{
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <group = 4, pads = [1,1,1,1]> (r, w2, b2)
    p = GlobalAveragePool (c)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3, b3)
}
"""
_SHAPES = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 1, 3, 3), "b2": (4,), "w3": (5, 4), "b3": (5,)}
# Of one sample: multiply-adds, and ten for each weight; a conversion costs as much as twenty.
_FIRST, _SECOND, _LAST = 27 * 4 * 64 + 10 * 108, 9 * 4 * 64 + 10 * 36, 20 + 10 * 20
_ALL = _FIRST + _SECOND + _LAST


@pytest.fixture(scope="module")
def cost() -> FloatCost:
    """The costs for a network of three layers."""
    generator = np.random.default_rng(0)
    proto = parser.parse_model(_GRAPH)
    for name, shape in _SHAPES.items():
        values = generator.normal(0, 0.3, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in proto.graph.node:
        node.name = node.output[0]
    model = prepare(ir.from_proto(proto))
    groups = node_groups(model, build_plan(model, PRESETS["x86"], Selection()))
    assert [group.layer for group in groups] == ["a", "c", "y"]
    feed = {"x": generator.normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}
    return float_cost(model, groups, feed)


def test_nothing_in_float_costs_nothing(cost: FloatCost) -> None:
    assert cost.share([]) == 0.0


def test_the_first_layer_in_float_moves_the_place_where_its_input_is_converted(cost: FloatCost) -> None:
    # The input need not be converted any more; the map behind the first layer has to be.
    conversions = 4 * 64 - 3 * 64
    assert cost.share(["a"]) == pytest.approx((_FIRST + 20 * conversions) / _ALL)


def test_a_layer_in_the_middle_has_to_be_entered_and_left(cost: FloatCost) -> None:
    # The pool behind it belongs to it: what leaves is one number a channel.
    assert cost.share(["c"]) == pytest.approx((_SECOND + 20 * (4 * 64 + 4)) / _ALL)


def test_neighbours_cost_less_together_than_each_alone(cost: FloatCost) -> None:
    assert cost.share(["a", "c"]) < cost.share(["a"]) + cost.share(["c"])


def test_everything_in_float_gives_up_everything_but_the_conversions_at_the_ends(cost: FloatCost) -> None:
    saved_conversions = 3 * 64 + 5
    assert cost.share(["a", "c", "y"]) == pytest.approx((_ALL - 20 * saved_conversions) / _ALL)
