"""Chooses the method, the bits and the accuracy level of a weight-only quantization by the model's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.metrics.latency import paired_ratio
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.search.block_rounding import least_squares, rounded_to_nearest
from qtool.weights.block_choices import BlockMethod
from qtool.weights.block_quantization import BlockWeight
from qtool.workflows.quantize.weight_only_request import Attempt, BitsGoal
from qtool.workflows.tune.bits_search import find_bits
from qtool.workflows.tune.weight_only_evaluation import WeightOnlyEvaluation

# Float products, and products whose activations are rounded to 8 bits inside of the kernel.
EXACT_LEVEL, INTEGER_LEVEL = 0, 4
# Integer products may cost so much, in dB, for the time that they save.
_MOST_LOSS_DB = 0.5
# From here on they are taken as well where float products would be slower than the float model.
_SOUND_DB = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyChoice:
    """The weights that were chosen.

    Attributes:
        plan: the weights that become integers.
        weights: by name.
        method: what chose their integers.
        level: the accuracy level of the products.
        attempts: what was evaluated.
        noise: where bits are mixed, what each weight alone puts into the outputs at 4 bits, over their signal.
    """

    plan: WeightOnlyPlan
    weights: Mapping[str, BlockWeight]
    method: BlockMethod
    level: int
    attempts: tuple[Attempt, ...] = ()
    noise: Mapping[str, float] = field(default_factory=dict)


def without_data(
    model: ir.Model, plan: WeightOnlyPlan, method: BlockMethod | None, level: int | None, progress: Progress
) -> WeightOnlyChoice:
    """Returns the weights fitted by themselves: rounded to nearest where that is asked for, or on fitted scales.

    Raises:
        InputError: a weight holds NaN or infinity.
    """
    plain = method is BlockMethod.RTN
    return WeightOnlyChoice(
        plan=plan,
        weights=rounded_to_nearest(model, plan) if plain else least_squares(model, plan, progress),
        method=BlockMethod.RTN if plain else BlockMethod.MSE,
        level=level or EXACT_LEVEL,
    )


def choose_weights(
    evaluation: WeightOnlyEvaluation,
    plan: WeightOnlyPlan,
    progress: Progress,
    *,
    method: BlockMethod | None,
    level: int | None,
    timed_on: Feed | None,
) -> WeightOnlyChoice:
    """Returns the weights that come closest to the float model.

    Args:
        evaluation: rounds weights and measures models.
        plan: what to quantize.
        progress: receives the steps.
        method: what chooses the integers; None to compare all.
        level: the accuracy level; None to choose it by outputs and times.
        timed_on: a sample to time models on; None where the level is no choice.

    Raises:
        InputError: a weight holds NaN or infinity.
        RuntimeRefusedError: onnxruntime does not load or run a model.
        CalibError: the data does not fit the model.
    """
    found: dict[BlockMethod, Mapping[str, BlockWeight]] = {}
    if method in (None, BlockMethod.RTN):
        found[BlockMethod.RTN] = rounded_to_nearest(evaluation.model, plan)
    if method is not BlockMethod.RTN:
        fitted, rounded = evaluation.guided(plan, progress)
        guided = {BlockMethod.MSE: fitted, BlockMethod.GPTQ: rounded}
        found |= {name: weights for name, weights in guided.items() if method in (None, name)}
    attempts = []
    with progress.task("evaluating methods", len(found)) as advance:
        for name, weights in found.items():
            sqnr_db = evaluation.sqnr_db(plan, weights, level or EXACT_LEVEL)
            attempts.append(Attempt(method=name, level=level or EXACT_LEVEL, sqnr_db=sqnr_db))
            advance(1)
    best = max(attempts, key=lambda attempt: attempt.sqnr_db)
    choice = WeightOnlyChoice(
        plan=plan,
        weights=found[best.method],
        method=best.method,
        level=best.level,
        attempts=tuple(attempts),
    )
    return choice if level is not None or timed_on is None else _with_level(evaluation, choice, timed_on, progress)


def choose_bits(
    evaluation: WeightOnlyEvaluation,
    plan: WeightOnlyPlan,
    progress: Progress,
    *,
    goal: BitsGoal,
    other_bytes: float,
    level: int | None,
    timed_on: Feed | None,
) -> WeightOnlyChoice:
    """Returns weights by GPTQ, each with the bits that ``goal`` needs; see ``find_bits`` and ``choose_weights``."""
    mixed = find_bits(evaluation, plan, goal, other_bytes, progress)
    reached = evaluation.sqnr_db(mixed.plan, mixed.weights, level or EXACT_LEVEL)
    choice = WeightOnlyChoice(
        plan=mixed.plan,
        weights=mixed.weights,
        method=BlockMethod.GPTQ,
        level=level or EXACT_LEVEL,
        attempts=(Attempt(method=BlockMethod.GPTQ, level=level or EXACT_LEVEL, sqnr_db=reached),),
        noise=mixed.noise,
    )
    if level is not None or timed_on is None or not mixed.weights:
        return choice
    return _with_level(evaluation, choice, timed_on, progress, least_db=goal.min_sqnr_db)


def _with_level(
    evaluation: WeightOnlyEvaluation,
    choice: WeightOnlyChoice,
    sample: Feed,
    progress: Progress,
    *,
    least_db: float | None = None,
) -> WeightOnlyChoice:
    """Returns the choice with integer products where they cost little, or where float ones would be too slow.

    They are not taken where less than ``least_db`` would be left.
    """
    exact = next(attempt.sqnr_db for attempt in choice.attempts if attempt.method is choice.method)
    integer = evaluation.sqnr_db(choice.plan, choice.weights, INTEGER_LEVEL)
    levels = (EXACT_LEVEL, INTEGER_LEVEL)
    floats, *times = evaluation.times(choice.plan, choice.weights, levels, sample, progress)
    speed = {level: paired_ratio(floats, taken) for level, taken in zip(levels, times, strict=True)}
    attempts = [*choice.attempts, Attempt(method=choice.method, level=INTEGER_LEVEL, sqnr_db=integer)]
    timed = tuple(
        replace(attempt, speedup=speed[attempt.level].median) if attempt.method is choice.method else attempt
        for attempt in attempts
    )
    faster = paired_ratio(times[0], times[1]).low > 1.0
    too_slow = speed[EXACT_LEVEL].high < 1.0 and integer >= _SOUND_DB
    enough = least_db is None or integer >= least_db
    taken = faster and enough and (integer >= exact - _MOST_LOSS_DB or too_slow)
    return replace(choice, level=INTEGER_LEVEL if taken else EXACT_LEVEL, attempts=timed)
