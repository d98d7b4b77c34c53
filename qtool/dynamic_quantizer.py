"""Turns layers of a prepared float graph into ones that quantize their activations as they run."""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.constants import constant_array
from qtool.plan import DynamicPlan
from qtool.qdq.insert_dynamic import insert_dynamic
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.rounding import WeightRounding

ROUND_TO_NEAREST = WeightRounding()


def quantize_dynamically(
    model: ir.Model, plan: DynamicPlan, rounding: WeightRounding = ROUND_TO_NEAREST
) -> dict[str, QuantizedWeight]:
    """Quantizes the layers of ``plan`` in place, and returns their weights by name; ``rounding`` makes their integers.

    Raises:
        InputError: a weight holds NaN or infinity.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    weights = {}
    for name, weight in plan.weights.items():
        array = constant_array(values[name])
        if array is None:
            raise AssertionError(f"the plan takes {name} for a weight")
        weights[name] = rounding(array, weight, bias=None)
    insert_dynamic(model, plan, weights)
    return weights
