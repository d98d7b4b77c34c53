"""Decides which layers stay float because integers save no time there, up to the whole model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.measure_profile import measure_profile
from qtool.calib.specs import Feed
from qtool.graph.tensor_sizes import TensorSize
from qtool.metrics.latency import BETWEEN_SESSIONS, paired_ratio
from qtool.progress import Progress
from qtool.search.float_cost import FloatCost, float_cost
from qtool.search.layer_times import measured_times, possible_kinds
from qtool.search.node_groups import node_groups
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune.model_pace import ModelPace
from qtool.workflows.tune.times_in_turns import times_of_contenders
from qtool.workflows.tune.timing import Stage, TimedChoice, Timing

_REASON = "integers save no time here"
# Savings that are doubted are multiplied by this: only layers that are clearly slower on integers stay float then.
_TRUST = 1.5
# After a result was too slow, only layers with this many times the savings stay on integers.
_DOUBT = 2.0
# Estimated savings of less than this fraction of a run are not tried.
_LEAST_GAIN = 0.03
# Layers that were timed in a slow phase of the machine are timed again.
_MOST_PLANS = 2


class TimePlan:
    """The latency of one model's layers, and the choice of layers that stay float for speed.

    Attributes:
        pace: the time of the float model.
    """

    def __init__(
        self,
        original: ir.Model,
        candidates: QuantizedCandidates,
        feed: Feed,
        timing: Timing,
        progress: Progress,
        *,
        sizes: Mapping[str, TensorSize] | None = None,
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
            sizes: of the tensors of the candidates' float model, for that sample; None where they are not known.
            times_layers: whether layers and the promising choices of them are timed in the model; layers that are
                predicted to be slow stay float otherwise.
            threads: threads inside an operator; 0 is one per core.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
        """
        everything = candidates({}) if times_layers and timing.is_open else None
        groups = node_groups(candidates.model, candidates.plan() if everything is None else everything.plan)
        self.pace = ModelPace()
        self._members = {group.layer: group.nodes for group in groups}
        self._asked = timing
        self._recorded = None if timing.choices is None else list(timing.choices)
        self._choices: list[TimedChoice] = []
        self._times_layers = times_layers
        profile = timing.profile or measure_profile(
            progress,
            kinds=possible_kinds(candidates.model, groups),
            # Layers that are timed in the model include the operators behind them.
            operators={node.op_type for node in candidates.model.graph} if everything is None else (),
            threads=threads,
        )
        cost_of = partial(float_cost, candidates.model, groups, feed, profile, sizes=sizes, threads=threads)
        self._stage = Stage.NOTHING
        if everything is None:
            cost = cost_of(measured=timing.layers)
            self._found = replace(timing, profile=profile)
            self._cost = cost.trusted(_TRUST) if timing.layers is None else cost
            if not timing.for_size:
                self._stage = Stage.SLOW_LAYERS if timing.stage is None else timing.stage
            return
        for _ in range(_MOST_PLANS):
            with progress.task("timing layers"):
                measured = measured_times(candidates.model, everything.model, groups, feed, threads=threads)
            self.pace.note(measured.float_s)
            self._found = replace(timing, profile=profile, layers=measured.times)
            self._cost = cost_of(measured=measured.times)
            if not timing.for_size:
                self._stage = self._fastest(original, candidates, everything.model, feed, progress, threads)
            if not self.pace.is_slow(measured.float_s):
                break

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
        """Advances to the next stage that differs after a result was too slow; returns False where times are fixed.

        Predicted times that were wrong once are trusted no further: that is the last stage then.
        """
        if not self._asked.is_open or self._asked.for_size or self._stage is Stage.EVERYTHING:
            return False
        before = self._slow_layers(self._stage)
        later = range(self._stage + 1, Stage.EVERYTHING) if self._times_layers else ()
        every = frozenset(self._members)
        more = (Stage(stage) for stage in later if self._slow_layers(Stage(stage)) not in (before, every))
        self._stage = next(more, Stage.EVERYTHING)
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
        stages = tuple(timed_models)
        measured = times_of_contenders(tuple(timed_models.values()), feed, progress, threads, self.pace)
        times = {stages[number]: own for number, own in measured.items()}
        best, *others = sorted(times)
        for stage in others:
            gained = paired_ratio(times[best], times[stage])
            if gained.low > 1.0 or (gained.median >= 1.0 - BETWEEN_SESSIONS and stage is not Stage.EVERYTHING):
                best = stage
        return best

    def _promises(self, slow: frozenset[str]) -> bool:
        """Returns whether layers in float could shorten a run by enough to be worth timing."""
        saved = -self._cost.nanoseconds(slow)
        return saved > _LEAST_GAIN * max(self._cost.nanoseconds(self._members), saved)
