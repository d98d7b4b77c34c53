"""Mixed precision with an accuracy goal: keeps layers float until a quantized model reaches it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.backends.execution import AS_IT_IS, Execution
from qtool.calib.specs import Array
from qtool.cluster.work import IN_THIS_PROCESS, Workers, threads_of
from qtool.errors import UsageError
from qtool.graph.specs import model_specs
from qtool.progress import Progress
from qtool.search.accuracy_goal import Goal
from qtool.search.accuracy_search import Candidate, MixedPrecisionSearch
from qtool.search.float_cost import FloatCost
from qtool.search.logits_view import with_logits
from qtool.search.node_groups import node_groups
from qtool.search.output_evaluator import Assessment, OutputEvaluator
from qtool.search.quantized_candidate import Quantize
from qtool.search.sensitivity import rank_layers
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.tune.sample_selection import ChosenSamples, spread_batches
from qtool.workflows.tune.speed import speedups

_LABELS = "_label"
_RANKING_SAMPLES = 8
# With only a few samples, one unusual image would decide.
_SAMPLES_OF_NOISE = 16
# With so many samples, one of them is less than half a percent.
_SAMPLES_OF_CLASSES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayers:
    """The result of a search, before the final quantization.

    Attributes:
        choice: the layers to keep float.
        plain: the fully quantized model.
        kept_float: the nodes to keep float, each with the reason.
        tried: how many choices were tried.
        stopped: why the search ended early, in words; None when it did not.
    """

    choice: Candidate
    plain: Candidate
    kept_float: dict[str, str]
    tried: int
    stopped: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPrecision:
    """The result for a goal.

    Attributes:
        goal: the figures to reach.
        met: whether they were reached.
        reached: the accuracy of the model.
        plain: the accuracy of the fully quantized model.
        layers: the layers that stay float, the most rewarding first.
        nodes: how many nodes that is.
        samples: how many samples it was evaluated on.
        tried: how many choices of layers were tried.
        stopped: why the search ended early, in words; None when it did not.
        speedup: how many times faster than float the model is.
        plain_speedup: how many times faster the fully quantized model is.
    """

    goal: Goal
    met: bool
    reached: Assessment
    plain: Assessment
    layers: tuple[str, ...]
    nodes: int
    samples: int
    tried: int
    stopped: str | None
    speedup: float
    plain_speedup: float


class AccuracyTarget:
    """Searches one model for the layers to keep float."""

    def __init__(
        self,
        original: ir.Model,
        goal: Goal,
        samples: CheckSamples,
        *,
        execution: Execution = AS_IT_IS,
        threads: int = 0,
        workers: Workers = IN_THIS_PROCESS,
    ) -> None:
        """Runs the float model on the evaluation samples.

        They are spread over the data; goals about classes need many, since each sample is one vote. Quantized models
        run with ``execution``; ``workers`` measure one layer at a time.

        Raises:
            UsageError: the goal needs labels, and the data has none.
            InputError: the labels do not fit the model.
            CalibError: the data does not fit the model.
        """
        self._original = original
        self._goal = goal
        self._threads = threads
        self._workers = workers
        self._execution = execution
        inputs, outputs = model_specs(original)
        labels = _labels(samples) if goal.max_drop is not None else None
        available = samples.data.available(samples.dataset)

        def spread(count: int) -> ChosenSamples:
            feeds = samples.data.feeds(samples.dataset, inputs, outputs)
            return spread_batches(feeds, samples=count, available=available)

        chosen = spread(_SAMPLES_OF_CLASSES if goal.needs_classes else _SAMPLES_OF_NOISE)
        labels = None if labels is None else labels[np.array(chosen.rows)]
        self._evaluator = OutputEvaluator(original, chosen.feeds, labels=labels, execution=execution, threads=threads)
        _check_classes(goal, self._evaluator.assess(original))
        self._ranking_evaluator = OutputEvaluator(
            original,
            spread(_RANKING_SAMPLES).feeds,
            view=with_logits,
            execution=execution,
            threads=threads_of(workers, threads),
        )
        self._feed = chosen.feeds[0]

    def search(
        self,
        model: ir.Model,
        quantize: Quantize,
        cost: FloatCost,
        progress: Progress,
        *,
        budget_s: float | None = None,
    ) -> FloatLayers:
        """Searches for the layers to keep float.

        Args:
            model: the prepared float model.
            quantize: makes candidates of it.
            cost: the latency model.
            progress: receives the steps.
            budget_s: seconds after which the best so far is returned; so does an interrupt.
        """
        end = math.inf if budget_s is None else time.monotonic() + budget_s
        with progress.task("trying which layers to keep float") as advance:
            search = MixedPrecisionSearch(quantize, self._evaluator, self._goal, advance=advance)
            plain = search.best
            stopped = None
            try:
                self._run(search, model, quantize, cost, progress, end)
                if not search.best.met and time.monotonic() >= end:
                    stopped = f"the time budget of {budget_s:g} s was used up"
            except KeyboardInterrupt:
                stopped = "interrupted"
        if stopped is not None:
            progress.note(f"{stopped}: continuing with the best of {search.tried} choices of float layers")
        return FloatLayers(
            choice=search.best,
            plain=plain,
            kept_float=search.best.kept_float(self._goal),
            tried=search.tried,
            stopped=stopped,
        )

    def allows_tables(self, before: ir.Model, after: ir.Model) -> bool:
        """Returns whether embedding tables may be integers, as in ``after``: the goal is met, or no further away."""
        least = min(0.0, self._goal.margin(self._evaluator.assess(before)))
        return self._goal.margin(self._evaluator.assess(after)) >= least

    def conclude(self, found: FloatLayers, result: ir.Model, quantize: Quantize, progress: Progress) -> MixedPrecision:
        """Measures the accuracy and the speed of the final model.

        Args:
            found: the result of the search.
            result: the model quantized with it.
            quantize: makes the fully quantized candidate to compare with.
            progress: receives the steps.
        """
        reached = self._evaluator.assess(result)
        others = [result] if not found.choice.layers else [result, quantize({}).model]
        measured = speedups(
            self._original, others, self._feed, progress, runtime=self._execution.as_written(), threads=self._threads
        )
        return MixedPrecision(
            goal=self._goal,
            met=self._goal.margin(reached) >= 0.0,
            reached=reached,
            plain=found.plain.assessment,
            layers=tuple(layer.group.layer for layer in found.choice.layers),
            nodes=len(found.kept_float),
            samples=self._evaluator.samples,
            tried=found.tried,
            stopped=found.stopped,
            speedup=measured[0].median,
            plain_speedup=measured[-1].median,
        )

    def _run(
        self,
        search: MixedPrecisionSearch,
        model: ir.Model,
        quantize: Quantize,
        cost: FloatCost,
        progress: Progress,
        end: float,
    ) -> None:
        def is_over() -> bool:
            return time.monotonic() >= end

        if search.best.met or is_over():
            return
        everything = quantize({})
        groups = node_groups(model, everything.plan)
        with progress.task("quantizing one layer at a time", len(groups)) as advance:
            ranked = rank_layers(
                quantize, groups, self._ranking_evaluator, advance=advance, stop=is_over, workers=self._workers
            )
        if is_over():
            return
        costs = {group.layer: 1e-9 * cost.nanoseconds([group.layer]) for group in groups}
        search.run(ranked, costs, stop=is_over)


def _labels(samples: CheckSamples) -> Array:
    labels = samples.dataset.array(_LABELS)
    if labels is None:
        raise UsageError(
            f"--max-drop needs labels, and {samples.data.source} has none",
            fix=f"store one class index per sample as '{_LABELS}', or use --min-agreement, which needs none",
        )
    return labels


def _check_classes(goal: Goal, own: Assessment) -> None:
    if goal.min_agreement is not None and own.agreement is None:
        raise UsageError(
            "--min-agreement needs classes, and no output of the model has the shape (samples, classes)",
            fix="use --min-sqnr instead",
        )
