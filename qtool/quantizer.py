"""Turns a prepared float graph, a plan and statistics into a QDQ graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.backends.qdq_placement.clamped_ranges import within_clamps
from qtool.backends.qdq_placement.fixed_scales import with_fixed_scales
from qtool.backends.qdq_placement.joined_tensors import unlike_parts
from qtool.backends.qdq_placement.masks import masked_scores
from qtool.backends.qdq_placement.operators import LARGEST_ACTIVATION, OPERATORS, Kind
from qtool.calib.affine import AffineParams, params_from_range
from qtool.calib.ranges import RangeMethod
from qtool.calib.statistics import TensorStatistics
from qtool.corrections import Corrections
from qtool.dynamic_quantizer import quantize_dynamically
from qtool.errors import InputError
from qtool.graph.constants import constant_array
from qtool.plan import Plan
from qtool.qdq.insert_qdq import insert_qdq
from qtool.weights.bias_correction import correct_biases, set_biases
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.rounding import FloatWeight

NO_CORRECTIONS = Corrections()


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Findings about quantized tensors.

    Attributes:
        constant: activations that had one value only.
        dead_channels: by weight, the channels that are all zero.
        widened_channels: by weight, the channels whose scale grew for the bias to fit into int32.
        reduced_channels: by weight, the channels that use less of the grid, for sums of 16 bits to hold their products.
        corrected: by layer, the largest shift of a channel's mean that its new bias takes back.
    """

    constant: tuple[str, ...]
    dead_channels: Mapping[str, tuple[int, ...]]
    widened_channels: Mapping[str, tuple[int, ...]]
    reduced_channels: Mapping[str, tuple[int, ...]]
    corrected: Mapping[str, float]


def unfit_tensors(graph: ir.Graph, statistics: Mapping[str, TensorStatistics]) -> dict[str, str]:
    """Returns the tensors of ``graph`` that must stay float, each with the reason that its values give."""
    unfit = {**unlike_parts(graph, statistics), **masked_scores(graph, statistics)}
    for name, seen in statistics.items():
        if seen.infinite:
            unfit[name] = f"holds {seen.infinite} infinite values"
        elif seen.batches == 0:
            unfit[name] = "was not reached by the data"
        elif max(-seen.minimum, seen.maximum) > LARGEST_ACTIVATION:
            largest = seen.minimum if -seen.minimum > seen.maximum else seen.maximum
            unfit[name] = f"reaches {largest:.3g}, as masks do"
    return unfit


def with_moved_tensors(
    model: ir.Model, plan: Plan, statistics: Mapping[str, TensorStatistics]
) -> dict[str, TensorStatistics]:
    """Adds statistics for tensors whose values only come, moved around, from tensors that have some.

    Statistics that were gathered for one selection of nodes serve another one so.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    found = dict(statistics)
    for name in plan.observed:
        value = values[name]
        while (value.name or "") not in statistics and (producer := value.producer()) is not None:
            operator = OPERATORS.get(producer.op_type)
            if operator is None or operator.kind is not Kind.MOVING or producer.inputs[0] is None:
                break
            value = producer.inputs[0]
        if value.name is not None and value.name in statistics and name not in found:
            # Channels may have moved to another axis.
            found[name] = replace(statistics[value.name], channel_axis=None, channel_values=0)
    return found


def useful_statistics(plan: Plan, statistics: Mapping[str, TensorStatistics]) -> dict[str, TensorStatistics]:
    """Returns the statistics of every source in ``plan``, without what gates make no difference of.

    Raises:
        InputError: a tensor has no statistics.
    """
    found = {}
    for source in dict.fromkeys(activation.source for activation in plan.activations.values()):
        seen = statistics.get(source)
        if seen is None:
            raise InputError(
                f"the statistics know nothing of the tensor '{source}'",
                fix="calibrate again with the same --target and --activations-symmetric, or give --calib-data instead",
            )
        found[source] = seen.above(plan.lowest[source]) if source in plan.lowest else seen
    return found


def activation_params(
    plan: Plan, statistics: Mapping[str, TensorStatistics], method: RangeMethod
) -> dict[str, AffineParams]:
    """Returns the parameters of every source in ``plan``, by tensor name.

    Raises:
        InputError: a tensor has no statistics.
    """
    seen = useful_statistics(plan, statistics)
    params: dict[str, AffineParams] = {}
    for activation in plan.activations.values():
        if activation.source not in params:
            span = method.span(seen[activation.source], activation.grid)
            params[activation.source] = params_from_range(span, activation.grid)
    return params


def quantities(
    model: ir.Model,
    plan: Plan,
    statistics: Mapping[str, TensorStatistics],
    method: RangeMethod,
    corrections: Corrections = NO_CORRECTIONS,
) -> tuple[dict[str, AffineParams], dict[str, QuantizedWeight]]:
    """Returns the parameters of activations by source, and the integers of weights by name; ``model`` is left as it is.

    Raises:
        InputError: a weight holds NaN or infinity, or a tensor has no statistics.
    """
    plain = activation_params(plan, with_moved_tensors(model, plan, statistics), method)
    chosen = {source: corrections.ranges.get(source, params) for source, params in plain.items()}
    activations = with_fixed_scales(model, plan, within_clamps(model, plan, chosen))
    return activations, _quantized_weights(model, plan, activations, corrections)


def quantize_graph(
    model: ir.Model,
    plan: Plan,
    statistics: Mapping[str, TensorStatistics],
    method: RangeMethod,
    *,
    bias_correction: bool,
    corrections: Corrections = NO_CORRECTIONS,
) -> Findings:
    """Quantizes ``model``, as ``prepare`` leaves it, in place.

    Args:
        model: the float model.
        plan: what to quantize.
        statistics: by tensor name.
        method: finds the ranges of activations.
        bias_correction: whether biases take back what rounding the weights does to the layers' means.
        corrections: what a search has found out.

    Raises:
        InputError: a weight holds NaN or infinity, or a tensor has no statistics.
    """
    statistics = with_moved_tensors(model, plan, statistics)
    activations, weights = quantities(model, plan, statistics, method, corrections)
    fitted = {name: bias for name, bias in corrections.biases.items() if name in plan.integer_nodes}
    set_biases(model, fitted)
    corrected = correct_biases(model, plan, weights, statistics, given=fitted) if bias_correction else {}
    insert_qdq(model, plan, activations, weights)
    weights |= quantize_dynamically(model, plan.dynamic, corrections.rounding)
    _drop_unread(model.graph)
    return Findings(
        constant=tuple(name for name in activations if statistics[name].minimum == statistics[name].maximum),
        dead_channels={name: weight.dead_channels for name, weight in weights.items() if weight.dead_channels},
        widened_channels={name: weight.widened_channels for name, weight in weights.items() if weight.widened_channels},
        reduced_channels={name: weight.reduced_channels for name, weight in weights.items() if weight.reduced_channels},
        corrected=corrected,
    )


def _drop_unread(graph: ir.Graph) -> None:
    """Removes float constants that integers have taken the place of."""
    inputs = set(graph.inputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and value not in inputs:
            del graph.initializers[name]


def _quantized_weights(
    model: ir.Model, plan: Plan, activations: Mapping[str, AffineParams], corrections: Corrections
) -> dict[str, QuantizedWeight]:
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    # A bias is stored in units of input scale times weight scale: this is how many of them, before the weight's part.
    bias_units: dict[str, npt.NDArray[np.float64]] = {}
    for bias in plan.biases.values():
        stored = constant_array(values[bias.tensor])
        if stored is not None:
            input_scale = float(activations[plan.activations[bias.activation].source].scale)
            units = np.abs(stored.reshape(-1).astype(np.float64)) / input_scale
            bias_units[bias.weight] = np.maximum(units, bias_units.get(bias.weight, 0.0))

    def weights() -> Iterator[FloatWeight]:
        for name, weight in plan.weights.items():
            array = constant_array(values[name])
            if array is None:
                raise AssertionError(f"the plan takes {name} for a weight")
            yield FloatWeight(weight=array, plan=weight, bias=bias_units.get(name))

    return dict(zip(plan.weights, corrections.rounding.every(weights()), strict=True))
