"""Mixed-precision search: finds the cheapest layers to keep float so that a quantized model reaches its goal.

Layers are sorted by noise per added latency. The shortest prefix that reaches the goal is found by doubling and then
by bisection; then layers that turn out to be unnecessary go back to integers one by one, those that gain least first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from qtool.progress import Advance
from qtool.search.accuracy_goal import Goal
from qtool.search.output_evaluator import Assessment, OutputEvaluator
from qtool.search.quantized_candidate import Quantize
from qtool.search.sensitivity import LayerNoise

# Free layers come first, but not before a layer with ten times their noise at the mean cost.
_LEAST_COST = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One choice of layers to keep float.

    Attributes:
        layers: those that stay float.
        assessment: the accuracy of the model with them.
        margin: by how much it passes the goal; negative if it fails.
        added_s: estimated seconds that it adds to a run, compared with a fully quantized model.
    """

    layers: tuple[LayerNoise, ...]
    assessment: Assessment
    margin: float
    added_s: float

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.margin >= 0.0

    def kept_float(self, goal: Goal) -> dict[str, str]:
        """Returns the nodes to keep float, each with the reason."""
        return {
            name: f"kept float for {goal.description}: {_noise_in_words(layer)}"
            for layer in self.layers
            for name in layer.group.nodes
        }


class MixedPrecisionSearch:
    """Tries choices of layers and keeps the best so far.

    Attributes:
        best: the cheapest choice that reaches the goal; as long as there is none, the one that comes closest.
        tried: how many choices were tried.
    """

    def __init__(self, quantize: Quantize, evaluator: OutputEvaluator, goal: Goal, *, advance: Advance) -> None:
        """Evaluates the fully quantized model, which is the first best.

        Args:
            quantize: makes the candidates.
            evaluator: measures them.
            goal: what to reach.
            advance: called with 1 after every try.
        """
        self._quantize = quantize
        self._evaluator = evaluator
        self._goal = goal
        self._advance = advance
        self._known: dict[frozenset[str], Candidate] = {}
        self._costs: Mapping[str, float] = {}
        self.best = self._tried(())

    @property
    def tried(self) -> int:
        """How many choices were tried."""
        return len(self._known)

    def run(self, ranked: Sequence[LayerNoise], costs: Mapping[str, float], *, stop: Callable[[], bool]) -> None:
        """Searches until nothing is left to try or ``stop`` returns True; after an interrupt ``best`` is still valid.

        Args:
            ranked: the layers that may stay float.
            costs: by layer, the estimated seconds that keeping it float adds to a run.
            stop: called before every try.
        """
        self._costs = costs
        line = by_noise_per_cost(ranked, costs)[:-1] if len(ranked) > 1 else ()
        kept = self._shortest(line, stop)
        for layer in reversed(kept):
            if stop():
                return
            fewer = tuple(other for other in kept if other is not layer)
            if self._tried(fewer).met:
                kept = fewer

    def _shortest(self, line: Sequence[LayerNoise], stop: Callable[[], bool]) -> tuple[LayerNoise, ...]:
        """Returns the shortest prefix of ``line`` found to reach the goal; empty if none does."""
        if self.best.met:
            return ()
        short, long = 0, 1
        while True:
            long = min(long, len(line))
            if short == long or stop():
                return ()
            if self._tried(line[:long]).met:
                break
            short, long = long, 2 * long
        while long - short > 1 and not stop():
            middle = (short + long) // 2
            if self._tried(line[:middle]).met:
                long = middle
            else:
                short = middle
        return tuple(line[:long])

    def _tried(self, layers: Sequence[LayerNoise]) -> Candidate:
        key = frozenset(layer.group.layer for layer in layers)
        if key in self._known:
            return self._known[key]
        kept = {name: "tried in float" for layer in layers for name in layer.group.nodes}
        assessment = self._evaluator.assess(self._quantize(kept).model)
        found = Candidate(
            layers=tuple(layers),
            assessment=assessment,
            margin=self._goal.margin(assessment),
            added_s=sum(max(self._costs.get(name, 0.0), 0.0) for name in key),
        )
        if not self._known or _merit(found) > _merit(self.best):
            self.best = found
        self._known[key] = found
        self._advance(1)
        return found


def by_noise_per_cost(ranked: Sequence[LayerNoise], costs: Mapping[str, float]) -> tuple[LayerNoise, ...]:
    """Sorts layers by the noise they remove for the time they add, the most rewarding first.

    Args:
        ranked: layers, the noisiest first.
        costs: seconds that keeping each one float adds to a run; 0 or less for those that add nothing.
    """
    paid = [cost for cost in costs.values() if cost > 0.0]
    least = _LEAST_COST * fmean(paid) if paid else 1.0
    return tuple(
        sorted(ranked, key=lambda layer: layer.share / max(costs.get(layer.group.layer, 0.0), least), reverse=True)
    )


def _merit(candidate: Candidate) -> tuple[bool, float, int]:
    if candidate.met:
        return (True, -candidate.added_s, -len(candidate.layers))
    return (False, candidate.margin, -len(candidate.layers))


def _noise_in_words(layer: LayerNoise) -> str:
    if layer.sqnr_db == -math.inf:
        return "quantizing its layer alone makes the outputs unusable"
    return f"quantizing its layer alone leaves {layer.sqnr_db:.1f} dB"
