"""Gives single layers weights in u8, whose sums have 32 bits on every x86, where s8 with 16 bits loses most for it.

Layers are lined up by the noise that 16 bits add to their products for the time that u8 takes longer, and beginnings of
that line are judged by the outputs, each twice as long as the one before.
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

# By so much of itself a run may become longer.
_MOST_SLOWER = 0.03
# A gain of less, in dB, is not worth a longer run.
_WORTH_DB = 0.1


def with_unsigned_weights(
    variants: QuantizedCandidates,
    judge: OutputEvaluator,
    cost: FloatCost,
    progress: Progress,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> QuantizedCandidates:
    """Returns variants in which the weights of some layers are u8, or ``variants`` where that is not worth it.

    Args:
        variants: with rounding that has seen the layers' inputs.
        judge: decides.
        cost: knows how much longer layers take.
        progress: receives the steps.
        stop: asked before every try; when it says so, the best so far is returned.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    line = _lined_up(variants, cost) if variants.scheme.offers_unsigned else []
    longest = 0
    while longest < len(line) and cost.slowdown_of_unsigned(line[: longest + 1]) <= _MOST_SLOWER:
        longest += 1
    if not longest or stop():
        return variants
    lengths = sorted({1 << power for power in range(longest.bit_length())} | {longest})
    best, reached = variants, judge.sqnr_db(variants({}).model)
    with progress.task("trying weights in u8", len(lengths)) as advance:
        for length in lengths:
            if stop():
                break
            scheme = replace(variants.scheme, unsigned_layers=frozenset(line[:length]))
            changed = replace(variants, scheme=scheme)
            found = judge.sqnr_db(changed({}).model)
            if found > reached + _WORTH_DB:
                best, reached = changed, found
            advance(1)
    return best


def _lined_up(variants: QuantizedCandidates, cost: FloatCost) -> list[str]:
    """Returns the layers whose pairs of weights add up to too much, those first that gain most for their time."""
    plan, rounding = variants.plan(), variants.refinement.rounding
    unlimited = {name: replace(weight, largest_pair=None) for name, weight in plan.weights.items()}
    limited, free = (_weights(variants, one) for one in (plan, replace(plan, weights=unlimited)))
    values = ir.convenience.create_value_mapping(variants.model.graph, include_subgraphs=False)
    worth = {}
    for name, weight in plan.weights.items():
        array = constant_array(values[name])
        if array is None or len(weight.nodes) != 1 or not limited[name].reduced_channels:
            continue
        added = rounding.noise_share(array, name, limited[name]) - rounding.noise_share(array, name, free[name])
        if added > 0.0:
            (layer,) = weight.nodes
            worth[layer] = added / max(cost.slowdown_of_unsigned([layer]), 1e-6)
    return sorted(worth, key=lambda layer: -worth[layer])


def _weights(variants: QuantizedCandidates, plan: Plan) -> dict[str, QuantizedWeight]:
    _, weights = quantities(variants.model, plan, variants.statistics, variants.method, variants.refinement)
    return weights
