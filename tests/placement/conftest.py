"""Small graphs, taken through the steps that lead to a quantized one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from calib.affine import AffineParams, params_from_range
from calib.ranges.min_max import MinMax
from calib.statistics import TensorStatistics
from qtool.passes.constants import constant_array
from qtool.passes.insert_qdq import insert_qdq
from qtool.plan import Plan, build_plan
from qtool.runtime.graphs import open_graph, watching
from qtool.schemes import PRESETS, Scheme
from qtool.selection import Selection
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
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
        activations = _activation_params(model, plan, feeds)
        return insert_qdq(model, plan, activations, _weights(model, plan, activations))

    return make


def _activation_params(
    model: ir.Model, plan: Plan, feeds: list[dict[str, npt.NDArray[Any]]]
) -> dict[str, AffineParams]:
    grids = {activation.source: activation.grid for activation in plan.activations.values()}
    statistics = {name: TensorStatistics() for name in grids}
    inputs = {value.name for value in model.graph.inputs}
    with watching(model, [name for name in grids if name not in inputs]) as watched, open_graph(watched) as session:
        for feed in feeds:
            for name, value in {**feed, **session.run(feed)}.items():
                if name in statistics:
                    statistics[name].add(value, value)
    return {name: params_from_range(MinMax().span(statistics[name], grid), grid) for name, grid in grids.items()}


def _weights(model: ir.Model, plan: Plan, activations: dict[str, AffineParams]) -> dict[str, QuantizedWeight]:
    by_weight = {bias.weight: bias for bias in plan.biases.values()}
    found = {}
    for tensor, weight in plan.weights.items():
        bias = by_weight.get(tensor)
        array = constant_array(model.graph.initializers[tensor])
        assert array is not None
        source = None if bias is None else activations[plan.activations[bias.activation].source]
        found[tensor] = round_to_nearest(
            tensor,
            array,
            weight.grid,
            weight.granularity,
            bias=None if bias is None else constant_array(model.graph.initializers[bias.tensor]),
            input_scale=1.0 if source is None else float(source.scale),
        )
    return found
