"""Chooses the products whose activations MatMulNBits rounds to 8 bits, which saves time and costs accuracy.

Products are taken in the order of the noise that they cost for the time that they save, as many as the outputs on
held-back samples bear. Time is that of a run on a whole sample and of one on a single position, as a language model
prefills and decodes: a kernel that is fast for one may be slow for the other, and neither is to be slower than float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.errors import RuntimeRefusedError
from qtool.metrics.latency import Times, paired_ratio
from qtool.progress import Progress
from qtool.workflows.quantize.weight_only_request import Attempt
from qtool.workflows.tune.weight_only.choice import WeightOnlyChoice
from qtool.workflows.tune.weight_only.evaluation import WeightOnlyEvaluation

# Integer products may cost so much, in dB.
_MOST_LOSS_DB = 0.5
# Times of runs that are alike differ by so much.
_AS_FAST = 0.95
# Down to here more of them are taken where float products would be slower than the float model.
_SOUND_DB = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Speed:
    """How many times as fast as the float model a run is on the feed that gains least, and the bounds of that."""

    median: float
    low: float
    high: float


def choose_integer_layers(
    evaluation: WeightOnlyEvaluation,
    choice: WeightOnlyChoice,
    feeds: Sequence[Feed],
    progress: Progress,
    *,
    exact_db: float,
    least_db: float | None = None,
) -> WeightOnlyChoice:
    """Returns the choice with integer products where they cost little, or where float ones would be too slow.

    Args:
        evaluation: measures models.
        choice: the weights.
        feeds: what to time runs on.
        progress: receives the steps.
        exact_db: SQNR with float products alone.
        least_db: what has to be left; None where there is no such goal.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    order = _ordered(evaluation, choice, feeds, progress)
    every = choice.products
    times = _timed(evaluation, choice, [frozenset(), every], feeds, progress)
    exact_speed, integer_speed = times
    measured = {0: exact_db}

    def sqnr_db(count: int) -> float:
        if count not in measured:
            measured[count] = evaluation.sqnr_db(choice, order[:count])
        return measured[count]

    least = -float("inf") if least_db is None else least_db
    with progress.task("choosing 8-bit activations"):
        taken = _most(len(order), lambda count: sqnr_db(count) >= max(exact_db - _MOST_LOSS_DB, least))
        speed = _speed_of(evaluation, choice, order[:taken], feeds, progress, exact_speed, integer_speed)
        if speed.high < _AS_FAST and taken < len(order):
            more = _most(len(order), lambda count: sqnr_db(count) >= max(_SOUND_DB, least))
            if more > taken:
                taken = _fewest_fast(taken, more, len(order), speed, integer_speed)
                speed = _speed_of(evaluation, choice, order[:taken], feeds, progress, exact_speed, integer_speed)
    layers = frozenset(order[:taken])
    attempts = [
        replace(attempt, speedup=exact_speed.median) if attempt.method is choice.method else attempt
        for attempt in choice.attempts
    ]
    attempts.append(
        Attempt(
            method=choice.method,
            integer_layers=len(every),
            sqnr_db=sqnr_db(len(order)) if len(order) == len(every) else evaluation.sqnr_db(choice, every),
            speedup=integer_speed.median,
        )
    )
    if layers and layers != every:
        attempts.append(
            Attempt(method=choice.method, integer_layers=taken, sqnr_db=sqnr_db(taken), speedup=speed.median)
        )
    return replace(choice, integer_layers=layers, attempts=tuple(attempts))


def one_position(model: ir.Model, sample: Feed) -> Feed | None:
    """Returns ``sample`` with every axis of no fixed length but the first cut to 1; None where nothing changes."""
    shapes = {value.name: value.shape for value in model.graph.inputs}
    cut = {}
    for name, array in sample.items():
        shape = shapes.get(name)
        places = tuple(
            slice(None) if axis == 0 or shape is None or isinstance(shape[axis], int) else slice(0, 1)
            for axis in range(array.ndim)
        )
        cut[name] = array[places]
    changed = any(cut[name].shape != array.shape for name, array in sample.items())
    return cut if changed else None


def timed_feeds(evaluation: WeightOnlyEvaluation, model: ir.Model, sample: Feed) -> tuple[Feed, ...]:
    """Returns what runs are timed on: a sample, and one position of it where the model runs on that."""
    single = one_position(model, sample)
    if single is None:
        return (sample,)
    try:
        evaluation.run_float(single)
    except RuntimeRefusedError:
        return (sample,)
    return sample, single


def _ordered(
    evaluation: WeightOnlyEvaluation, choice: WeightOnlyChoice, feeds: Sequence[Feed], progress: Progress
) -> list[str]:
    """Returns the products that integers make faster, those with little noise for the time first."""
    with progress.task("timing layers"):
        saved = _saved(evaluation, choice, feeds)
    with progress.task("measuring activations"):
        noise = evaluation.activation_noise(choice)
    faster = [name for name in choice.plan.layers if saved.get(name, 0.0) > 0.0]
    return sorted(faster, key=lambda name: noise[name] / saved[name])


def _saved(evaluation: WeightOnlyEvaluation, choice: WeightOnlyChoice, feeds: Sequence[Feed]) -> dict[str, float]:
    """Returns the share of a run that integers save in each product, a mean over the feeds.

    Products of one form take the same time, which is that of the median among them.
    """
    forms: dict[tuple[int, ...], list[str]] = {}
    for item in choice.plan.weights.values():
        shape = choice.weights[item.tensor].integers.shape
        for name in item.nodes:
            if name in choice.products:
                forms.setdefault((*shape, item.grid.bits), []).append(name)
    saved = dict.fromkeys(choice.products, 0.0)
    for feed in feeds:
        exact, integer = (evaluation.kernel_times(choice, layers, feed) for layers in ((), choice.products))
        whole = sum(exact.values())
        for names in forms.values():
            gains = sorted(exact.get(name, 0.0) - integer.get(name, 0.0) for name in names)
            for name in names:
                saved[name] += gains[len(gains) // 2] / max(whole * len(feeds), 1e-12)
    return saved


def _timed(
    evaluation: WeightOnlyEvaluation,
    choice: WeightOnlyChoice,
    forms: Sequence[Collection[str]],
    feeds: Sequence[Feed],
    progress: Progress,
) -> list[_Speed]:
    """Returns how fast the quantized model is with each form's integer layers."""
    found: list[list[_Speed]] = [[] for _ in forms]
    for feed in feeds:
        floats, *times = evaluation.times(choice, forms, feed, progress)
        for place, taken in enumerate(times):
            found[place].append(_speed(floats, taken))
    return [min(speeds, key=lambda speed: speed.median) for speeds in found]


def _speed(floats: Times, taken: Times) -> _Speed:
    ratio = paired_ratio(floats, taken)
    return _Speed(median=ratio.median, low=ratio.low, high=ratio.high)


def _speed_of(
    evaluation: WeightOnlyEvaluation,
    choice: WeightOnlyChoice,
    layers: Sequence[str],
    feeds: Sequence[Feed],
    progress: Progress,
    exact: _Speed,
    integer: _Speed,
) -> _Speed:
    if not layers:
        return exact
    if len(layers) == len(choice.products):
        return integer
    return _timed(evaluation, choice, [frozenset(layers)], feeds, progress)[0]


def _fewest_fast(taken: int, more: int, every: int, speed: _Speed, integer: _Speed) -> int:
    """Returns how many layers it takes to be as fast as float, by the times of some and of all, at most ``more``.

    Seconds of a run fall by about the same with each further layer.
    """
    now, then = 1.0 / speed.median, 1.0 / integer.median
    if then >= now:
        return taken
    wanted = taken + (now - 1.0) / (now - then) * (every - taken)
    return min(more, max(round(wanted + 0.5), taken))


def _most(count: int, bears: Callable[[int], bool]) -> int:
    """Returns the largest number up to ``count`` that ``bears`` accepts, where it accepts all below it."""
    if bears(count):
        return count
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bears(middle) else (low, middle)
    return low
