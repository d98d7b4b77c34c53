"""Improves the result of a search, and keeps only what samples show to be better that no part of it was tuned on.

Differences between good quantizations are small, and noise decides between them on the few samples that a search tunes
on. Every change therefore has to prove itself on about half of the samples, which it is not tuned on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qtool.backends.execution_choice import execution_for
from qtool.progress import Progress
from qtool.search.held_back_evidence import Evidence, HeldBackNoise, HeldBackSamples
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.prepared_model import PreparedModel
from qtool.workflows.quantize.request import QuantizeRequest
from qtool.workflows.quantize.static_search import SearchResult, StaticSearch
from qtool.workflows.tune.correction_search import Fit
from qtool.workflows.tune.efforts import SearchConfig
from qtool.workflows.tune.sample_selection import ChosenSamples, spread_batches

OTHER_CHOICES, OTHER_FLOAT_LAYERS = "other corrections and float layers", "other float layers"
_MOST_HELD_BACK = 256
# Fewer say nothing about others.
_FEWEST_SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Improved:
    """A search result after all attempts to improve it.

    Attributes:
        result: what it is now.
        evidence: on every change that was tried, in order.
        stopped: why not everything was tried, in words; None where it was.
    """

    result: SearchResult
    evidence: tuple[Evidence, ...]
    stopped: str | None


def improved(
    result: SearchResult,
    wanted: SearchConfig,
    searching: StaticSearch,
    prepared: PreparedModel,
    request: QuantizeRequest,
    progress: Progress,
) -> Improved:
    """Tries what ``wanted`` says on top of ``result``; an interrupt leaves what was reached by then.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    samples = searching.samples
    if samples is None:
        return Improved(result=result, evidence=(), stopped=None)
    held_back = _held_back(prepared, samples, result.start.samples)
    if len(held_back.rows) < _FEWEST_SAMPLES or result.start.samples - len(held_back.rows) < _FEWEST_SAMPLES:
        progress.note("too few samples to hold some back and try more: the result is that of --effort balanced")
        return Improved(result=result, evidence=(), stopped=None)
    execution = execution_for(request.scheme)
    judge = HeldBackSamples(prepared.original, held_back.feeds, execution=execution, threads=request.threads)
    improving = _Improving(result, judge)
    stopped = None
    try:
        other = searching.run(wanted, held_back=held_back, before=result)
        improving.try_result(other)
        improving.try_float_layers(other)
        for fit in other.search.fits(improving.result.kept.nodes):
            improving.try_fit(fit)
    except KeyboardInterrupt:
        stopped = "the search for further improvements was interrupted"
    return Improved(result=improving.result, evidence=tuple(improving.evidence), stopped=stopped)


def _held_back(prepared: PreparedModel, samples: CheckSamples, available: int) -> ChosenSamples:
    """Returns about half of the samples that the result was tuned on, at least as many as are left."""
    inputs, outputs = prepared.interface
    feeds = samples.holdout.used(samples.data.feeds(samples.dataset, inputs, outputs))
    most = samples.memory.evaluation_samples(min(_MOST_HELD_BACK, -(-available // 2)))
    return spread_batches(feeds, samples=most, available=available)


class _Improving:
    """Holds the best result so far, and the evidence on all others."""

    def __init__(self, result: SearchResult, judge: HeldBackSamples) -> None:
        self.result = result
        self.evidence: list[Evidence] = []
        self._judge = judge
        self._noise = self._measured(result)

    def try_fit(self, fit: Fit) -> None:
        """Takes the result of a fit where the evidence speaks for it, or it is required."""
        fitted = replace(self.result, candidates=fit.apply(self.result.candidates))
        self._try(fit.name, fitted, True if fit.is_required else None)

    def try_result(self, other: SearchResult) -> None:
        """Takes the result of another search where the evidence speaks for it; where there is a goal, it decides."""
        self._try(OTHER_CHOICES, other, self._nearer_goal(other))

    def try_float_layers(self, other: SearchResult) -> None:
        """Takes the float layers of another search alone where the evidence speaks for them and there is no goal."""
        mine, its = self.result.kept, other.kept
        if self.result is other or its.found is not None or mine.nodes.keys() == its.nodes.keys():
            return
        self._try(OTHER_FLOAT_LAYERS, replace(self.result, kept=its), None)

    def _try(self, name: str, other: SearchResult, decided: bool | None) -> None:
        noise = self._measured(other)
        found = self._noise.evidence(name, noise)
        if decided is not None:
            found = replace(found, kept=decided)
        self.evidence.append(found)
        if found.kept:
            self.result, self._noise = other, noise

    def _nearer_goal(self, other: SearchResult) -> bool | None:
        """Returns whether another search reaches the goal at less cost; None where neither does or there is none."""
        mine, its = self.result.kept.found, other.kept.found
        if mine is None or its is None or not (mine.choice.met or its.choice.met):
            return None
        return its.choice.met and (not mine.choice.met or its.choice.added_s < mine.choice.added_s)

    def _measured(self, result: SearchResult) -> HeldBackNoise:
        return self._judge.noise(result.candidates(result.kept.nodes).model)
