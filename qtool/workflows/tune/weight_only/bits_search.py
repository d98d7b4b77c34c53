"""Finds the bits of each weight for a goal, by what each one alone does to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qtool.errors import GateError
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.search.mixed_bits import FLOAT_BITS, bits_for_noise, bits_for_size
from qtool.workflows.quantize.weight_only_request import BitsGoal
from qtool.workflows.tune.weight_only.bits_forms import BitsForms, measured_forms
from qtool.workflows.tune.weight_only.choice import WeightOnlyChoice
from qtool.workflows.tune.weight_only.evaluation import WeightOnlyEvaluation

# Noise that adds up a little differently than predicted is corrected in so many rounds, with this margin.
_ROUNDS, _MARGIN_DB = 5, 0.1
# The same for perplexity, and the largest step at once.
_PART, _LARGEST_STEP = 0.95, 0.02

# Makes weights with so many bits each, by name.
Mixed = Callable[[Mapping[str, int]], WeightOnlyChoice]


def find_bits(
    evaluation: WeightOnlyEvaluation, plan: WeightOnlyPlan, goal: BitsGoal, other_bytes: float, progress: Progress
) -> WeightOnlyChoice:
    """Returns the weights with the bits for ``goal``, rounded by GPTQ, after AWQ where that is better at 4 bits.

    Layers are then rounded in sequence where their model affords it, and where that is better.

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
    forms = measured_forms(evaluation, plan, progress)
    options = forms.options

    def mixed(bits: Mapping[str, int]) -> WeightOnlyChoice:
        choice = forms.mixed(bits)
        if not evaluation.affords_sequence(choice):
            return choice
        return max(choice, evaluation.in_sequence(choice, progress), key=evaluation.sqnr_db)

    if goal.max_bytes is not None:
        room = goal.max_bytes - other_bytes
        least = sum(min(form.size for form in forms) for forms in options.values())
        if least > room:
            raise GateError(
                f"with the fewest bits the model takes {(least + other_bytes) / 1e6:.1f} MB, more than --max-size",
                fix="allow more, or use a larger --block-size",
            )
        return mixed(bits_for_size(options, room))
    if goal.max_perplexity_rise is not None:
        return bits_for_perplexity(evaluation, forms, mixed, goal.max_perplexity_rise)
    if goal.min_sqnr_db is None:
        raise AssertionError("a goal names one of the three")
    return bits_for_sqnr(evaluation, forms, mixed, goal.min_sqnr_db)[0]


def bits_for_sqnr(
    evaluation: WeightOnlyEvaluation, forms: BitsForms, mixed: Mixed, least_db: float
) -> tuple[WeightOnlyChoice, float]:
    """Returns the weights in few bytes whose worst output reaches ``least_db``, and what it reaches.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    wanted = least_db
    for _ in range(_ROUNDS):
        found = mixed(bits_for_noise(forms.options, 10.0 ** (-wanted / 10.0)))
        reached = evaluation.sqnr_db(found)
        if reached >= least_db or not found.weights:
            break
        wanted += least_db - reached + _MARGIN_DB
    return found, reached


def bits_for_perplexity(
    evaluation: WeightOnlyEvaluation, forms: BitsForms, mixed: Mixed, most: float
) -> WeightOnlyChoice:
    """Returns the weights in few bytes with which perplexity rises by at most ``most``, a share.

    Small noise in the logits raises the loss by its power.

    Raises:
        InputError: the model has no logits, or the data no tokens.
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    noise = sum(max(form.noise for form in options) for options in forms.options.values())
    for _ in range(_ROUNDS):
        found = mixed(bits_for_noise(forms.options, noise))
        if not found.weights:
            break
        rise = evaluation.perplexity_rise(found)
        if rise <= most:
            break
        bits = {name: item.grid.bits for name, item in found.plan.weights.items()}
        now = sum(
            option.noise
            for name, options in forms.options.items()
            for option in options
            if option.bits == bits.get(name, FLOAT_BITS)
        )
        noise = now * max(most / rise, _LARGEST_STEP) * _PART
    return found
