"""Small graphs, taken through the steps that lead to a quantized one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from calib.ranges.min_max import MinMax
from calib.statistics import TensorStatistics
from qtool.plan import Plan, build_plan
from qtool.quantizer import quantize_graph
from qtool.runtime.graphs import open_graph, watching
from qtool.schemes import PRESETS, Scheme
from qtool.selection import Selection
from qtool.workflows.prepare import prepare

Prepared: TypeAlias = Callable[..., ir.Model]
Quantized: TypeAlias = Callable[..., ir.Model]


@pytest.fixture
def random_array() -> Callable[..., npt.NDArray[np.float32]]:
    """Makes float32 arrays of a given shape, always the same for the same arguments."""

    def make(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
        return np.random.default_rng([seed, *shape]).normal(0.0, 0.4, shape).astype(np.float32)

    return make


@pytest.fixture
def prepared() -> Prepared:
    """Parses the body of a graph, stores the given arrays as its initializers and prepares it."""

    def make(text: str, *, opset: int = 17, **tensors: npt.NDArray[Any]) -> ir.Model:
        proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
        # The text form gives nodes no names: they are called after their first output here.
        for node in proto.graph.node:
            node.name = f"/{node.output[0]}/{node.op_type}"
        return prepare(ir.from_proto(proto))

    return make


@pytest.fixture
def quantized() -> Quantized:
    """Quantizes a prepared model in place: extremes of the given feeds, weights rounded to nearest."""

    def make(
        model: ir.Model,
        feeds: list[dict[str, npt.NDArray[Any]]],
        *,
        scheme: Scheme = PRESETS["x86"],
        exclude: tuple[str, ...] = (),
    ) -> ir.Model:
        plan = build_plan(model, scheme, Selection(exclude=exclude))
        quantize_graph(model, plan, _statistics(model, plan, feeds), MinMax(), bias_correction=False)
        return model

    return make


def _statistics(model: ir.Model, plan: Plan, feeds: list[dict[str, npt.NDArray[Any]]]) -> dict[str, TensorStatistics]:
    statistics = {name: TensorStatistics() for name in plan.observed}
    inputs = {value.name for value in model.graph.inputs}
    computed = [name for name in plan.observed if name not in inputs]
    with watching(model, computed) as watched, open_graph(watched) as session:
        for feed in feeds:
            for name, value in {**feed, **session.run(feed)}.items():
                if name in statistics:
                    statistics[name].add(value, value)
    return statistics
