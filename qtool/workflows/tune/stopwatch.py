"""Measures what layers in float cost, where that was estimated."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.metrics.latency import paired_ratio
from qtool.progress import Progress
from qtool.search.float_fallback import FloatFallback
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune.model_pace import ModelPace
from qtool.workflows.tune.time_plan import TimePlan
from qtool.workflows.tune.times_in_turns import repeated_times
from qtool.workflows.tune.timing import TimedChoice


class Stopwatch:
    """Replaces the estimated cost of float layers by that of models that are timed in turns."""

    def __init__(
        self,
        original: ir.Model,
        candidates: QuantizedCandidates,
        feed: Feed,
        times: TimePlan,
        progress: Progress,
        *,
        most_slower: float,
        most_float: float | None,
        threads: int = 0,
    ) -> None:
        """Takes the limits on the time of a run.

        Args:
            original: the float model.
            candidates: makes quantized candidates of it.
            feed: one sample.
            times: the latency of the layers, which records what is timed.
            progress: receives the steps.
            most_slower: the largest relative slowdown, where ``most_float`` is None.
            most_float: the largest fraction of the integers' savings to give up; None where ``most_slower`` counts.
            threads: threads inside an operator; 0 is one per core.
        """
        self._original = original
        self._candidates = candidates
        self._feed = feed
        self._times = times
        self._progress = progress
        self._most_slower = most_slower
        self._most_float = most_float
        self._threads = threads
        self._pace = ModelPace()

    @cached_property
    def _plain(self) -> ir.Model:
        return self._candidates({}).model

    def __call__(self, fallback: FloatFallback, share: float | None) -> FloatFallback | None:
        """Returns a choice with its measured cost, where that is no more than ``share`` of the integers' savings.

        Args:
            fallback: the choice.
            share: the largest fraction; None for the default.
        """
        kept = {node: "tried in float" for layer in fallback.layers for node in layer.group.nodes}
        names = tuple(layer.group.layer for layer in fallback.layers)
        part = self._most_float if share is None else share

        def measure() -> TimedChoice:
            # What integers save takes the float model, which takes the longest.
            models = [self._plain, self._candidates(kept).model]
            pace = self._pace
            if part is not None:
                models, pace = [self._original, *models], self._times.pace
            *floats, plain, tried = pace.steady(
                lambda: repeated_times(models, self._feed, self._progress, self._threads, will_repeat=pace.will_repeat)
            )
            saved = max(paired_ratio(floats[0], plain).median - 1.0, 0.0) if floats else None
            return TimedChoice(layers=names, slowdown=paired_ratio(tried, plain).median - 1.0, saved=saved)

        found = self._times.timed_choice(names, measure)
        if found is None or found.slowdown > (self._most_slower if part is None else part * (found.saved or 0.0)):
            return None
        return replace(fallback, share=self._times.cost().share_of_slowdown(found.slowdown))
