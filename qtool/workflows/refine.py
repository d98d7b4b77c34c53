"""Looks for a better quantization than one pass over the data gives: smoothing, chosen ranges, guided rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx_ir as ir

from calib.specs import Feed
from calib.statistics import TensorStatistics
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.quantizer import useful_statistics, with_moved_tensors
from qtool.refinement import Refinement
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.search.range_choice import choose_ranges
from qtool.weights.input_moments import gather_moments, layer_inputs, moments_tensors
from qtool.weights.rounding import WeightRounding
from qtool.weights.smoothing import channel_reach, smooth, smoothable_tensors, smoothing_factors
from qtool.workflows.calibrate import specs_of
from qtool.workflows.check_result import CheckSamples

# A tensor's range is judged by no fewer of its values, as far as there are any.
_FEWEST_VALUES = 4096


class Effort(StrEnum):
    """How much time goes into the quality of the result."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Searches:
    """What is looked for.

    Attributes:
        ranges: whether each activation's range is chosen among the methods by the outputs.
        smoothing: whether outlier channels are moved into the weights behind them.
        error_feedback: whether rounding minimizes the error of products instead of that of weights.
        judged: how many batches judge ranges.
        seen: how many batches show the layers' inputs.
    """

    ranges: bool
    smoothing: bool
    error_feedback: bool
    judged: int
    seen: int


def searches(effort: Effort, *, ranges: bool, smoothing: bool | None, error_feedback: bool | None) -> Searches:
    """Returns what an effort looks for; what is None follows from the effort."""
    more = effort is not Effort.FAST
    return Searches(
        ranges=ranges and more,
        smoothing=more if smoothing is None else smoothing,
        error_feedback=more if error_feedback is None else error_feedback,
        judged=6 if effort is Effort.BEST else 2,
        seen=64 if effort is Effort.BEST else 12,
    )


NO_SEARCHES = searches(Effort.FAST, ranges=False, smoothing=None, error_feedback=None)


def smooth_model(
    model: ir.Model, plan: Plan, samples: CheckSamples, wanted: Searches, progress: Progress, *, threads: int = 0
) -> tuple[str, ...]:
    """Moves outlier channels of a prepared model into the weights behind them, in place.

    Returns:
        The names of the tensors that were smoothed.
    """
    tensors = smoothable_tensors(model, plan)
    if not tensors:
        return ()
    feeds = _some(_feeds(model, samples), wanted.seen, _batches(model, samples))
    with (
        watching(model, [tensor.tensor for tensor in tensors]) as graph,
        open_graph(graph, threads=threads) as session,
        progress.task("looking for outlier channels"),
    ):
        reach = channel_reach(Watcher(session), feeds)
    fitting, factors = [], {}
    for tensor in tensors:
        seen = reach.get(tensor.tensor)
        # What is not finite is named by the calibration that follows.
        if seen is None or len(seen) != tensor.channels or not np.isfinite(seen).all():
            continue
        found = smoothing_factors(seen)
        if (found > 1.0).any():
            fitting.append(tensor)
            factors[tensor.tensor] = found
    smooth(model, fitting, factors)
    return tuple(tensor.tensor for tensor in fitting)


def refine(
    model: ir.Model,
    plan: Plan,
    statistics: Mapping[str, TensorStatistics],
    samples: CheckSamples,
    wanted: Searches,
    progress: Progress,
    *,
    threads: int = 0,
) -> Refinement:
    """Chooses ranges and gathers what guides rounding, as far as ``wanted``; ``model`` is left as it is.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    refinement = Refinement()
    count = _batches(model, samples)
    if wanted.ranges and plan.activations:
        full = useful_statistics(plan, with_moved_tensors(model, plan, statistics))
        judged = max(wanted.judged, _fewest_batches(full))
        feeds = list(_some(_feeds(model, samples), judged, count))
        choice = choose_ranges(model, plan, full, feeds, progress, threads=threads)
        refinement = Refinement(ranges=choice.params, methods=choice.methods)
    layers = layer_inputs(model, plan) if wanted.error_feedback else ()
    if not layers:
        return refinement
    feeds_seen = _some(_feeds(model, samples), wanted.seen, count)
    with (
        watching(model, moments_tensors(layers)) as graph,
        open_graph(graph, threads=threads) as session,
        progress.task("learning the layers' inputs"),
    ):
        moments = gather_moments(Watcher(session), feeds_seen, layers)
    return Refinement(
        ranges=refinement.ranges,
        methods=refinement.methods,
        rounding=WeightRounding(layers, moments),
    )


def _feeds(model: ir.Model, samples: CheckSamples) -> Iterator[Feed]:
    with open_graph(model) as session:
        inputs, outputs = session.inputs, session.outputs
    return samples.hold_back.used(samples.data.feeds(samples.dataset, inputs, outputs))


def _batches(model: ir.Model, samples: CheckSamples) -> int | None:
    inputs, outputs = specs_of(model.graph.inputs), specs_of(model.graph.outputs)
    return samples.data.batches(samples.dataset, inputs, outputs)


def _fewest_batches(statistics: Mapping[str, TensorStatistics]) -> int:
    """Returns how many batches it takes until some thousands of values judge each tensor on average; more cost little.

    Few values of small tensors say nothing about the ranges of others.
    """
    sizes = [seen.values / seen.batches for seen in statistics.values() if seen.batches]
    return math.ceil(_FEWEST_VALUES * len(sizes) / max(sum(sizes), 1.0))


def _some(feeds: Iterable[Feed], wanted: int, available: int | None) -> Iterator[Feed]:
    """Yields ``wanted`` batches, evenly spread where their number is known."""
    step = 1 if available is None else max(available // wanted, 1)
    given = 0
    for number, feed in enumerate(feeds):
        if number % step == 0:
            yield feed
            given += 1
            if given == wanted:
                return
