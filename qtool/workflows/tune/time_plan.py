"""Decides which layers stay float because integers save no time there, up to the whole model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.backends.machine_profile import MachineProfile, profile_from_json
from qtool.backends.onnxruntime_cpu.measure_profile import measure_profile
from qtool.calib.specs import Feed
from qtool.errors import InputError
from qtool.metrics.latency import BETWEEN_SESSIONS, Interval, Times, interleaved_times, paired_ratio
from qtool.progress import Advance, Progress
from qtool.runtime.graphs import open_graph
from qtool.search.float_cost import FloatCost, float_cost
from qtool.search.float_fallback import FloatFallback
from qtool.search.layer_times import LayerTime, measured_times
from qtool.search.node_groups import node_groups
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates

_REASON = "integers save no time here"
# Savings that are doubted are multiplied by this: only layers that are clearly slower on integers stay float then.
_TRUST = 1.5
# After a result was too slow, only layers with this many times the savings stay on integers.
_DOUBT = 2.0
# Estimated savings of less than this fraction of a run are not tried.
_LEAST_GAIN = 0.03
ROUNDS = 9
# A machine that is busy for a moment makes a choice look slow, and so does a session whose memory lies badly: models
# are timed so many times, each with new sessions, unless that takes more seconds than these.
_MOST_TURNS = 3
_TURNS_SECONDS = 3.0


class Stage(IntEnum):
    """How much of the model stays float for speed."""

    NOTHING = 0
    SLOW_LAYERS = 1
    DOUBTFUL_LAYERS = 2
    EVERYTHING = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedChoice:
    """A choice of float layers that was timed beside the float model and integers everywhere.

    Attributes:
        layers: those in float.
        slowdown: how much longer a run takes than with integers everywhere, as a fraction; below 0 where it is shorter.
        saved: how much longer the float model takes than integers everywhere, as a fraction; 0 where it is faster.
    """

    layers: tuple[str, ...]
    slowdown: float
    saved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The source of the times of a search.

    Attributes:
        profile: the cost of kernels; None to time them on this machine, with the model's own layers and the result.
        layers: the time of each layer; None to predict it from ``profile``, or to time it.
        stage: how much stays float; None to choose it.
        for_size: whether layers stay on integers also where that saves no time.
        choices: the choices that were timed, in order; None to time them, or to trust predictions of ``profile``.
    """

    profile: MachineProfile | None = None
    layers: Mapping[str, LayerTime] | None = None
    stage: Stage | None = None
    for_size: bool = False
    choices: tuple[TimedChoice, ...] | None = None

    @property
    def is_open(self) -> bool:
        """Whether times are measured on this machine."""
        return self.profile is None

    def as_json(self) -> dict[str, Any]:
        """Returns everything needed to repeat the choices, for a manifest."""
        return {
            "profile": None if self.profile is None else self.profile.as_json(),
            "layers": None if self.layers is None else {name: asdict(time) for name, time in self.layers.items()},
            "stage": None if self.stage is None else int(self.stage),
            "for_size": self.for_size,
            "choices": None if self.choices is None else [asdict(choice) for choice in self.choices],
        }


def timing_from_json(document: Any, source: str) -> Timing:
    """Reads what ``as_json`` wrote.

    Raises:
        InputError: it is something else.
    """
    try:
        layers, profile, choices = document["layers"], document["profile"], document.get("choices")
        return Timing(
            profile=None if profile is None else profile_from_json(profile, source),
            layers=None if layers is None else {str(name): LayerTime(**time) for name, time in layers.items()},
            stage=None if document["stage"] is None else Stage(document["stage"]),
            for_size=bool(document["for_size"]),
            choices=None if choices is None else tuple(_choice(**choice) for choice in choices),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source} does not record the times of its run", fix="quantize again") from error


def _choice(layers: Sequence[str], slowdown: float, saved: float) -> TimedChoice:
    return TimedChoice(layers=tuple(map(str, layers)), slowdown=float(slowdown), saved=float(saved))


class TimePlan:
    """The latency of one model's layers, and the choice of layers that stay float for speed."""

    def __init__(
        self,
        original: ir.Model,
        candidates: QuantizedCandidates,
        feed: Feed,
        timing: Timing,
        progress: Progress,
        *,
        times_layers: bool = True,
        threads: int = 0,
    ) -> None:
        """Measures the times that ``timing`` does not give, and chooses how much stays float.

        Args:
            original: the float model.
            candidates: makes quantized candidates of it.
            feed: one sample.
            timing: the source of times.
            progress: receives the steps.
            times_layers: whether layers and the promising choices of them are timed in the model; layers that are
                predicted to be slow stay float otherwise.
            threads: threads inside an operator; 0 is one per core.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
        """
        opens_models = times_layers and timing.is_open
        everything = candidates({}) if opens_models else None
        groups = node_groups(candidates.model, candidates.plan() if everything is None else everything.plan)
        self._members = {group.layer: group.nodes for group in groups}
        profile, layers = timing.profile, timing.layers
        if profile is None:
            profile = measure_profile(progress, threads=threads)
        if everything is not None:
            with progress.task("timing layers"):
                layers = measured_times(candidates.model, everything.model, groups, feed, threads=threads)
        cost = float_cost(candidates.model, groups, feed, profile, measured=layers, threads=threads)
        self._cost = cost if layers is not None else cost.trusted(_TRUST)
        self._asked = timing
        self._recorded = None if timing.choices is None else list(timing.choices)
        self._choices: list[TimedChoice] = []
        self._times_layers = times_layers
        self._found = replace(timing, profile=profile, layers=layers)
        self._stage = Stage.NOTHING
        if not timing.for_size:
            self._stage = Stage.SLOW_LAYERS if timing.stage is None else timing.stage
            if timing.stage is None and everything is not None:
                self._stage = self._fastest(original, candidates, everything.model, feed, progress, threads)

    @property
    def timing(self) -> Timing:
        """Everything that was measured and chosen."""
        return replace(self._found, stage=self._stage, choices=tuple(self._choices) if self.times_choices else None)

    @property
    def times_choices(self) -> bool:
        """Whether choices of float layers are timed on this machine, or were when the run was recorded."""
        return self.is_timed or self._recorded is not None

    def timed_choice(self, layers: Sequence[str], measure: Callable[[], TimedChoice]) -> TimedChoice | None:
        """Returns what ``measure`` does, or did in the recorded run; None where it was not called there."""
        if self._recorded is None:
            found = measure()
        else:
            known = [choice for choice in self._recorded if choice.layers == tuple(layers)]
            if not known:
                return None
            found = known[0]
            self._recorded.remove(found)
        self._choices.append(found)
        return found

    @property
    def is_timed(self) -> bool:
        """Whether models are timed on this machine."""
        return self._asked.is_open

    def slow_nodes(self) -> dict[str, str]:
        """Returns the nodes that stay float, each with the reason."""
        return self._nodes_of(self._slow_layers(self._stage))

    def cost(self) -> FloatCost:
        """Returns the cost of further layers in float, in addition to those."""
        return self._cost.beside(self._slow_layers(self._stage))

    def keep_more(self) -> bool:
        """Advances to the next stage after a result was too slow; returns False where times are fixed.

        Predicted times that were wrong once are trusted no further: that is the last stage then.
        """
        if not self._asked.is_open or self._asked.for_size or self._stage is Stage.EVERYTHING:
            return False
        self._stage = Stage(self._stage + 1) if self._times_layers else Stage.EVERYTHING
        return True

    def _nodes_of(self, layers: Collection[str]) -> dict[str, str]:
        return {node: _REASON for layer in layers for node in self._members[layer]}

    def _slow_layers(self, stage: Stage) -> frozenset[str]:
        if stage is Stage.NOTHING:
            return frozenset()
        if stage is Stage.EVERYTHING:
            return frozenset(self._members)
        if stage is Stage.DOUBTFUL_LAYERS:
            return self._cost.trusted(1.0 / _DOUBT).cheapest()
        slow = self._cost.cheapest()
        # All in float is a stage of its own: what saves the most on integers may still gain by a little beside it.
        measured = self._found.layers is not None
        return self._cost.trusted(_TRUST).cheapest() if measured and len(slow) == len(self._members) else slow

    def _fastest(
        self,
        original: ir.Model,
        candidates: QuantizedCandidates,
        integers: ir.Model,
        feed: Feed,
        progress: Progress,
        threads: int,
    ) -> Stage:
        """Times the promising stages in turns, and returns the fastest.

        Of stages that are equally fast the one with more layers in float is more accurate, but to quantize nothing at
        all must be clearly faster.
        """
        timed_models = {Stage.EVERYTHING: original, Stage.NOTHING: integers}
        chosen = {frozenset[str](): Stage.NOTHING, frozenset(self._members): Stage.EVERYTHING}
        for stage in (Stage.SLOW_LAYERS, Stage.DOUBTFUL_LAYERS):
            slow = self._slow_layers(stage)
            if slow not in chosen and self._promises(slow):
                chosen[slow] = stage
                timed_models[stage] = candidates(self._nodes_of(slow)).model
        times = dict(
            zip(timed_models, _repeated_times(tuple(timed_models.values()), feed, progress, threads), strict=True)
        )
        best = Stage.NOTHING
        for stage in sorted(times):
            gained = paired_ratio(times[best], times[stage])
            if gained.low > 1.0 or (gained.median >= 1.0 - BETWEEN_SESSIONS and stage is not Stage.EVERYTHING):
                best = stage
        return best

    def _promises(self, slow: frozenset[str]) -> bool:
        """Returns whether layers in float could shorten a run by enough to be worth timing."""
        saved = -self._cost.nanoseconds(slow)
        return saved > _LEAST_GAIN * max(self._cost.nanoseconds(self._members), saved)


def is_slower(speedup: Interval) -> bool:
    """Returns whether a model is slower than float beyond the noise of its timing."""
    return speedup.high < 1.0


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
            models = [self._original, self._candidates({}).model, self._candidates(kept).model]
            floats, plain, tried = _repeated_times(models, self._feed, self._progress, self._threads)
            saved = max(paired_ratio(floats, plain).median - 1.0, 0.0)
            return TimedChoice(layers=names, slowdown=paired_ratio(tried, plain).median - 1.0, saved=saved)

        found = self._times.timed_choice(names, measure)
        if found is None or found.slowdown > (self._most_slower if part is None else part * found.saved):
            return None
        return replace(fallback, share=self._times.cost().share_of_slowdown(found.slowdown))


def _repeated_times(models: Sequence[ir.Model], feed: Feed, progress: Progress, threads: int) -> list[Times]:
    """Times models in turns, small ones in several sets of sessions, and returns the seconds of each run."""
    found: list[tuple[Times, ...]] = []
    end = time.monotonic() + _TURNS_SECONDS
    while not found or (len(found) < _MOST_TURNS and time.monotonic() < end):
        with progress.task("timing in turns", ROUNDS) as advance:
            found.append(times_in_turns(models, feed, advance, threads=threads))
    return _joined(found)


def _joined(turns: Sequence[Sequence[Times]]) -> list[Times]:
    """Returns the times of each model in all turns."""
    return [np.concatenate(times) for times in zip(*turns, strict=True)]


def times_in_turns(models: Sequence[ir.Model], feed: Feed, advance: Advance, *, threads: int = 0) -> tuple[Times, ...]:
    """Times runs of several models in turns, and returns the seconds of each, one per round.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    with ExitStack() as stack:
        sessions = [stack.enter_context(open_graph(model, threads=threads)) for model in models]
        return interleaved_times([partial(session.run, feed) for session in sessions], rounds=ROUNDS, advance=advance)
