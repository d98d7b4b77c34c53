"""Shorter chains of constants, constants folded into the next layer, and grids that end where gates close."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.calib.statistics import TensorStatistics
from qtool.planning import build_plan
from qtool.runtime.graphs import open_graph
from qtool.selection import NodeSelection
from qtool.workflows.quantize.prepare import prepare

_HARD_SWISH = """
g (float[n,4,9,9] x) => (float[n,6,h,v] y)
{
    c = Conv (x, w1)
    p = Add (c, three)
    k = Clip (p, zero, six)
    m = Mul (c, k)
    d = Div (m, six)
    s = Mul (d, factor)
    o = Add (s, offset)
    e = Conv <PADS> (o, w2)
    y = Tanh (e)
}
"""


def _proto(text: str) -> ir.Model:
    generator = np.random.default_rng(0)
    tensors = {
        "w1": generator.normal(0, 0.6, (5, 4, 3, 3)),
        "w2": generator.normal(0, 0.4, (6, 5, 3, 3)),
        "three": np.array(3.0),
        "zero": np.array(0.0),
        "six": np.array(6.0),
        "factor": np.array([1.7]),
        "offset": np.array([-0.4]),
    }
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items() if name in text
    )
    return ir.from_proto(proto)


def _outputs(model: ir.Model) -> np.ndarray:
    x = np.random.default_rng(1).normal(0, 1, (2, 4, 9, 9)).astype(np.float32)
    with open_graph(model) as session:
        return session.run({"x": x})["y"]


@pytest.mark.parametrize(("pads", "sums"), [("pads = [1,1,1,1]", 2), ("strides = [1,1]", 1)])
def test_a_spelled_out_hard_swish_is_shortened(pads: str, sums: int) -> None:
    original = _proto(_HARD_SWISH.replace("PADS", pads))
    expected = _outputs(original)
    model = prepare(original.clone())
    np.testing.assert_allclose(_outputs(model), expected, atol=1e-5)
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds["Mul"] == 1
    # Padding adds zeros behind the offset: only without it can the next layer take the offset in.
    assert kinds["Add"] == sums
    assert kinds["Div"] == 0


def test_a_grid_ends_where_the_gate_closes() -> None:
    model = prepare(_proto(_HARD_SWISH.replace("PADS", "pads = [1,1,1,1]")))
    assert build_plan(model, PRESETS["x86"], NodeSelection()).lowest == {"c": -3.0}


def test_another_reader_needs_the_whole_range() -> None:
    text = _HARD_SWISH.replace("PADS", "pads = [1,1,1,1]").replace("y = Tanh (e)", "y = Tanh (e)\n z = Sigmoid (c)")
    text = text.replace("(float[n,6,h,v] y)", "(float[n,6,h,v] y, float[n,5,a,b] z)")
    model = prepare(_proto(text))
    assert build_plan(model, PRESETS["x86"], NodeSelection()).lowest == {}


def test_statistics_without_what_lies_below() -> None:
    values = np.random.default_rng(0).normal(0, 4, (8, 500)).astype(np.float32)
    seen, clipped = TensorStatistics(), TensorStatistics()
    seen.add(values, values, samples=8)
    clipped.add(np.maximum(values, -3), np.maximum(values, -3), samples=8)
    above = seen.above(-3.0)
    assert above.minimum == -3.0
    assert above.maximum == seen.maximum
    assert int(above.counts.sum()) == values.size
    assert np.abs(above.counts - clipped.counts).sum() <= 0.02 * values.size
    assert seen.above(-100.0) is seen
