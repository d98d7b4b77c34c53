"""Chooses the method, the bits and the accuracy levels of a weight-only quantization by the model's outputs."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.search.blocks.rounding import least_squares, rounded_to_nearest
from qtool.weights.blocks.choices import BlockMethod
from qtool.workflows.quantize.weight_only_request import Attempt, BitsGoal
from qtool.workflows.tune.weight_only.bits_search import find_bits
from qtool.workflows.tune.weight_only.choice import WeightOnlyChoice
from qtool.workflows.tune.weight_only.evaluation import WeightOnlyEvaluation
from qtool.workflows.tune.weight_only.level_search import choose_integer_layers, timed_feeds

_GUIDED = (BlockMethod.MSE, BlockMethod.GPTQ, BlockMethod.AWQ, BlockMethod.AWQ_GPTQ)


def without_data(
    model: ir.Model, plan: WeightOnlyPlan, method: BlockMethod | None, level: int | None, progress: Progress
) -> WeightOnlyChoice:
    """Returns the weights fitted by themselves: rounded to nearest where that is asked for, or on fitted scales.

    Raises:
        InputError: a weight holds NaN or infinity.
    """
    plain = method is BlockMethod.RTN
    choice = WeightOnlyChoice(
        plan=plan,
        weights=rounded_to_nearest(model, plan) if plain else least_squares(model, plan, progress),
        method=BlockMethod.RTN if plain else BlockMethod.MSE,
    )
    return replace(choice, integer_layers=choice.layers_at(level))


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
        level: the accuracy level; None to choose it for each product by outputs and times.
        timed_on: a sample to time models on; None where the level is no choice.

    Raises:
        InputError: a weight holds NaN or infinity.
        RuntimeRefusedError: onnxruntime does not load or run a model.
        CalibError: the data does not fit the model.
    """
    found = []
    if method in (None, BlockMethod.RTN):
        weights = evaluation.kept(rounded_to_nearest(evaluation.model, plan))
        found.append(WeightOnlyChoice(plan=plan, weights=weights, method=BlockMethod.RTN))
    if method is not BlockMethod.RTN:
        guided = evaluation.guided(plan, progress, _GUIDED if method is None else (method.before,))
        for name, rounded in guided.weights.items():
            if guided.scales or not name.scales_inputs or method is not None:
                model = guided.prepared(evaluation.model, name)
                found.append(WeightOnlyChoice(plan=plan, weights=rounded, method=name, model=model))
    if method is not None and method is not method.before:
        found = [evaluation.in_sequence(choice, progress) for choice in found]
    attempts = []
    with progress.task("evaluating methods", len(found)) as advance:
        for choice in found:
            attempts.append(_attempt(evaluation, choice, level))
            advance(1)
    best = max(range(len(found)), key=lambda place: attempts[place].sqnr_db)
    chosen, reached = found[best], attempts[best].sqnr_db
    if method is None and evaluation.affords_sequence(chosen):
        fitted = evaluation.in_sequence(chosen, progress)
        attempts.append(_attempt(evaluation, fitted, level))
        if attempts[-1].sqnr_db > reached:
            chosen, reached = fitted, attempts[-1].sqnr_db
    chosen = replace(chosen, attempts=tuple(attempts))
    return _with_levels(evaluation, chosen, level, timed_on, progress, exact_db=reached)


def _attempt(evaluation: WeightOnlyEvaluation, choice: WeightOnlyChoice, level: int | None) -> Attempt:
    layers = choice.layers_at(level)
    return Attempt(method=choice.method, integer_layers=len(layers), sqnr_db=evaluation.sqnr_db(choice, layers))


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
    """Returns weights, each with the bits that ``goal`` needs; see ``find_bits`` and ``choose_weights``."""
    choice = find_bits(evaluation, plan, goal, other_bytes, progress)
    layers = choice.layers_at(level)
    reached = evaluation.sqnr_db(choice, layers)
    most = goal.max_perplexity_rise
    rise = None if most is None else evaluation.perplexity_rise(choice, layers)
    attempt = Attempt(method=choice.method, integer_layers=len(layers), sqnr_db=reached, perplexity_rise=rise)
    choice = replace(choice, attempts=(attempt,))
    if not choice.weights:
        return choice
    found = _with_levels(evaluation, choice, level, timed_on, progress, exact_db=reached, least_db=goal.min_sqnr_db)
    if most is None or level is not None or not found.integer_layers:
        return found
    # Some decibels are left for 8-bit activations; perplexity has the last word.
    if evaluation.perplexity_rise(found, found.integer_layers) > most:
        return replace(found, integer_layers=frozenset())
    return found


def _with_levels(
    evaluation: WeightOnlyEvaluation,
    choice: WeightOnlyChoice,
    level: int | None,
    timed_on: Feed | None,
    progress: Progress,
    *,
    exact_db: float,
    least_db: float | None = None,
) -> WeightOnlyChoice:
    if level is not None or timed_on is None or not choice.products:
        return replace(choice, integer_layers=choice.layers_at(level))
    feeds = timed_feeds(evaluation, evaluation.model, timed_on)
    return choose_integer_layers(evaluation, choice, feeds, progress, exact_db=exact_db, least_db=least_db)
