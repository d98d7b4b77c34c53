"""Gives layers u8 weights, summed in 32 bits on every x86, where the 16-bit sums of s8 weights lose most.

Layers are sorted by the noise that 16 bits add to their products per extra time of u8, and prefixes of doubling length
are evaluated by the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from qtool.graph.constants import constant_array
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.quantizer import quantities
from qtool.search.float_cost import FloatCost
from qtool.search.output_evaluator import OutputEvaluator
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates

# The largest relative slowdown of a run.
_MOST_SLOWER = 0.02
# The least gain, in dB, that justifies a longer run.
_LEAST_GAIN_DB = 0.1


def with_unsigned_weights(
    candidates: QuantizedCandidates,
    evaluator: OutputEvaluator,
    cost: FloatCost,
    progress: Progress,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> QuantizedCandidates:
    """Returns candidates with u8 weights in some layers, or ``candidates`` where that gains too little.

    Args:
        candidates: with rounding by GPTQ.
        evaluator: measures them.
        cost: the latency model.
        progress: receives the steps.
        stop: called before every try; when it returns True, the best so far is returned.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    line = _lined_up(candidates, cost) if candidates.scheme.offers_unsigned else []
    longest = 0
    while longest < len(line) and cost.slowdown_of_unsigned(line[: longest + 1]) <= _MOST_SLOWER:
        longest += 1
    if not longest or stop():
        return candidates
    lengths = sorted({1 << power for power in range(longest.bit_length())} | {longest})
    best, reached = candidates, evaluator.sqnr_db(candidates({}).model)
    with progress.task("trying weights in u8", len(lengths)) as advance:
        for length in lengths:
            if stop():
                break
            scheme = replace(candidates.scheme, unsigned_layers=frozenset(line[:length]))
            changed = replace(candidates, scheme=scheme)
            found = evaluator.sqnr_db(changed({}).model)
            if found > reached + _LEAST_GAIN_DB:
                best, reached = changed, found
            advance(1)
    return best


def _lined_up(candidates: QuantizedCandidates, cost: FloatCost) -> list[str]:
    """Returns the layers whose pairs of weights exceed the limit, those that gain most for their time first."""
    plan, rounding = candidates.plan(), candidates.corrections.rounding
    unlimited = {name: replace(weight, largest_pair=None) for name, weight in plan.weights.items()}
    limited, free = (_weights(candidates, one) for one in (plan, replace(plan, weights=unlimited)))
    values = ir.convenience.create_value_mapping(candidates.model.graph, include_subgraphs=False)
    merit = {}
    for name, weight in plan.weights.items():
        array = constant_array(values[name])
        if array is None or len(weight.nodes) != 1 or not limited[name].reduced_channels:
            continue
        added = rounding.noise_share(array, name, limited[name]) - rounding.noise_share(array, name, free[name])
        if added > 0.0:
            (layer,) = weight.nodes
            merit[layer] = added / max(cost.slowdown_of_unsigned([layer]), 1e-6)
    return sorted(merit, key=lambda layer: -merit[layer])


def _weights(candidates: QuantizedCandidates, plan: Plan) -> dict[str, QuantizedWeight]:
    _, weights = quantities(candidates.model, plan, candidates.statistics, candidates.method, candidates.corrections)
    return weights
