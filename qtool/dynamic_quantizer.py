"""Turns layers of a prepared float graph into ones that quantize their activations as they run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import constant_array
from qtool.plan import DynamicPlan, WeightPlan
from qtool.qdq.insert_dynamic import insert_dynamic
from qtool.qdq.recurrent_layers import RecurrentWeight, insert_recurrent
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
    quantize_recurrent(model, plan, rounding)
    return weights


def quantize_recurrent(model: ir.Model, plan: DynamicPlan, rounding: WeightRounding = ROUND_TO_NEAREST) -> None:
    """Quantizes the LSTM of ``plan`` in place.

    Raises:
        InputError: a weight holds NaN or infinity.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    recurrent = {}
    for name, layer in plan.recurrent.items():
        parts = [(part, constant_array(values[part.tensor])) for part in (layer.inputs, layer.states)]
        recurrent[name] = [_recurrent(array, part, rounding) for part, array in parts if array is not None]
    insert_recurrent(model, recurrent)


def _recurrent(array: npt.NDArray[np.float32], plan: WeightPlan, rounding: WeightRounding) -> RecurrentWeight:
    """Quantizes one weight of an LSTM, (directions, 4 · hidden, inputs)."""
    found = [rounding(np.ascontiguousarray(one.T), plan, bias=None) for one in array]
    return RecurrentWeight(
        integers=np.stack([one.integers for one in found]),
        scale=np.stack([one.params.scale for one in found]),
        zero_point=np.stack([one.params.zero_point for one in found]),
    )
