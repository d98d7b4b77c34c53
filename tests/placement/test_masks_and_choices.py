"""Choices between tensors run on integers, unless what they choose stands for minus infinity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qtool.backends.onnxruntime_cpu.coverage import integer_coverage
from qtool.backends.targets import PRESETS
from qtool.planning import build_plan
from qtool.runtime.graphs import open_graph
from qtool.selection import NodeSelection

Prepared = Callable[..., ir.Model]
Quantized = Callable[..., ir.Model]
Arrays = Callable[..., npt.NDArray[np.float32]]

_NETWORK = """
g (float[N,3,6,6] x, bool[N,1,6,6] mask) => (float[N,4,4,4] y)
{
    a = Conv (x, w1)
    chosen = Where (mask, a, other)
    b = Conv <kernel_shape = [3,3]> (chosen, w2)
    y = Softmax <axis = 1> (b)
}
"""


def _model(prepared: Prepared, random_array: Arrays, other: float) -> ir.Model:
    weights = {"w1": random_array(4, 3, 1, 1), "w2": random_array(4, 4, 3, 3)}
    return prepared(_NETWORK, other=np.float32(other), **weights)


@pytest.mark.parametrize("other", [0.0, -0.5, 2.0])
def test_a_choice_between_two_layers_runs_on_integers(
    prepared: Prepared, quantized: Quantized, random_array: Arrays, other: float
) -> None:
    model = _model(prepared, random_array, other)
    feeds = [{"x": random_array(5, 3, 6, 6, seed=s), "mask": random_array(5, 1, 6, 6, seed=s) > 0} for s in range(4)]
    with open_graph(model) as session:
        expected = session.run(feeds[0])["y"]
    model = quantized(model, feeds)
    assert {row.operator: row.kernel for row in integer_coverage(model).nodes}["Where"] == "QLinearWhere"
    with open_graph(model) as session:
        np.testing.assert_allclose(session.run(feeds[0])["y"], expected, atol=0.03)


@pytest.mark.parametrize("other", [-np.inf, -3e38, np.nan])
def test_a_mask_stays_float_and_says_so(prepared: Prepared, random_array: Arrays, other: float) -> None:
    plan = build_plan(_model(prepared, random_array, other), PRESETS["x86"], NodeSelection())
    reasons = {skip.operator: skip.reason for skip in plan.skipped}
    assert reasons["Where"] == "its constant 'other' holds NaN, or values as large as in masks"


def test_a_softmax_stays_float_by_choice(prepared: Prepared, random_array: Arrays) -> None:
    plan = build_plan(_model(prepared, random_array, 0.0), PRESETS["x86"], NodeSelection())
    reasons = {skip.operator: skip.reason for skip in plan.skipped}
    assert "magnifies the rounding errors" in reasons["Softmax"]
