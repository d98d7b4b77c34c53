"""Finds the bits of each weight for a goal, by what each one alone does to the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qtool.errors import GateError
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.search.mixed_bits import FLOAT_BITS, BitsOption, bits_for_noise, bits_for_size
from qtool.weights.block_quantization import BlockWeight
from qtool.workflows.quantize.weight_only_request import BitsGoal
from qtool.workflows.tune.weight_only_evaluation import WeightOnlyEvaluation

_MEASURED_BITS = 4
# Kernels multiply with 2 bits many times slower than with 4; tables are only looked up.
_BITS_OF_TABLES, _BITS_OF_PRODUCTS = (2, 4, 8), (4, 8)
# Noise that adds up a little differently than predicted is corrected in so many rounds, with this margin.
_ROUNDS, _MARGIN_DB = 5, 0.1
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedBits:
    """What was found for a goal.

    Attributes:
        plan: the weights that become integers, with their bits.
        weights: by name, those alone.
        bits: of every weight, ``FLOAT_BITS`` for those that stay float.
        noise: what each weight alone puts into the outputs at 4 bits, over their signal.
    """

    plan: WeightOnlyPlan
    weights: Mapping[str, BlockWeight]
    bits: Mapping[str, int]
    noise: Mapping[str, float]


def find_bits(
    evaluation: WeightOnlyEvaluation, plan: WeightOnlyPlan, goal: BitsGoal, other_bytes: float, progress: Progress
) -> MixedBits:
    """Returns the bits of each weight for ``goal``.

    Args:
        evaluation: rounds weights and measures models.
        plan: the weights that may become integers; how many bits it gives them makes no difference.
        goal: what to reach.
        other_bytes: the size of everything in the file that is no weight of ``plan``.
        progress: receives the steps.

    Raises:
        GateError: the fewest bits are too large for the goal.
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    tables = {name for name, item in plan.weights.items() if any(plan.layers[node] == "Gather" for node in item.nodes)}
    by_bits = {
        bits: evaluation.rounded(_with_bits(plan, dict.fromkeys(names, bits)), progress)
        for bits, names in ((2, tables), (4, set(plan.weights)), (8, set(plan.weights)))
        if names
    }
    noise = _measured(evaluation, plan, by_bits[_MEASURED_BITS], progress)
    options = {
        name: _options(by_bits, name, noise[name], _BITS_OF_TABLES if name in tables else _BITS_OF_PRODUCTS)
        for name in plan.weights
    }
    if goal.max_bytes is not None:
        room = goal.max_bytes - other_bytes
        least = sum(min(form.size for form in forms) for forms in options.values())
        if least > room:
            raise GateError(
                f"with the fewest bits the model takes {(least + other_bytes) / 1e6:.1f} MB, more than --max-size",
                fix="allow more, or use a larger --block-size",
            )
        return _mixed(plan, by_bits, bits_for_size(options, room), noise)
    if goal.min_sqnr_db is None:
        raise AssertionError("a goal names one of the two")
    wanted = goal.min_sqnr_db
    for _ in range(_ROUNDS):
        found = _mixed(plan, by_bits, bits_for_noise(options, 10.0 ** (-wanted / 10.0)), noise)
        missing = goal.min_sqnr_db - evaluation.sqnr_db(found.plan, found.weights)
        if missing <= 0.0 or not found.weights:
            break
        wanted += missing + _MARGIN_DB
    return found


def _measured(
    evaluation: WeightOnlyEvaluation, plan: WeightOnlyPlan, weights: Mapping[str, BlockWeight], progress: Progress
) -> dict[str, float]:
    """Returns noise over signal of the worst output with one weight quantized at a time."""
    noise = {}
    with progress.task("measuring sensitivity", len(weights)) as advance:
        for name, weight in weights.items():
            sqnr_db = evaluation.sqnr_db(_only(plan, {name}), {name: weight})
            noise[name] = 0.0 if sqnr_db == math.inf else 10.0 ** (-sqnr_db / 10.0)
            advance(1)
    return noise


def _options(
    by_bits: Mapping[int, Mapping[str, BlockWeight]], name: str, noise: float, bits: tuple[int, ...]
) -> list[BitsOption]:
    """Returns the forms of a weight; the noise of rounding falls fourfold with each bit."""
    found = [
        BitsOption(bits=count, size=by_bits[count][name].size, noise=noise * 4.0 ** (_MEASURED_BITS - count))
        for count in bits
    ]
    floats = _FLOAT_BYTES * by_bits[_MEASURED_BITS][name].integers.size
    return [*found, BitsOption(bits=FLOAT_BITS, size=floats, noise=0.0)]


def _mixed(
    plan: WeightOnlyPlan,
    by_bits: Mapping[int, Mapping[str, BlockWeight]],
    bits: Mapping[str, int],
    noise: Mapping[str, float],
) -> MixedBits:
    integers = {name: count for name, count in bits.items() if count != FLOAT_BITS}
    return MixedBits(
        plan=_with_bits(plan, integers),
        weights={name: by_bits[count][name] for name, count in integers.items()},
        bits=bits,
        noise=noise,
    )


def _with_bits(plan: WeightOnlyPlan, bits: Mapping[str, int]) -> WeightOnlyPlan:
    """Returns the plan for the weights in ``bits`` alone, with so many bits each."""
    kept = _only(plan, set(bits))
    weights = {name: replace(item, grid=replace(item.grid, bits=bits[name])) for name, item in kept.weights.items()}
    return replace(kept, weights=weights)


def _only(plan: WeightOnlyPlan, names: set[str]) -> WeightOnlyPlan:
    weights = {name: item for name, item in plan.weights.items() if name in names}
    nodes = {node for item in weights.values() for node in item.nodes}
    return replace(plan, weights=weights, layers={name: kind for name, kind in plan.layers.items() if name in nodes})
