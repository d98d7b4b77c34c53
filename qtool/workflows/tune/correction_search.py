"""Applies corrections that use data: chosen ranges, bias correction, weight clipping, GPTQ, layer reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from qtool.calib.specs import Feed, batch_length
from qtool.calib.statistics import TensorStatistics
from qtool.cluster.work import IN_THIS_PROCESS, Workers
from qtool.corrections import Corrections
from qtool.progress import Progress
from qtool.quantizer import quantities, useful_statistics, with_moved_tensors
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.search.block_reconstruction import never, reconstruct
from qtool.search.correction_ablation import CorrectionAblation
from qtool.search.logits_view import with_logits
from qtool.search.range_choice import choose_ranges
from qtool.weights.input_hessian import LayerInput, gather_hessians, hessian_tensors, layer_inputs
from qtool.weights.registry import WEIGHT_ALGORITHMS
from qtool.weights.rounding import WeightRounding
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune.efforts import Policy, SearchConfig
from qtool.workflows.tune.tuning_split import TuningSplit

Correction: TypeAlias = Callable[[QuantizedCandidates], QuantizedCandidates]

LAYER_RECONSTRUCTION, LEARNED_ROUNDING = "layer reconstruction", "learned rounding"

# The tensors of a model that is searched on few batches, and how many times as many others get.
_MANY_TENSORS, _MOST_TIMES = 32, 8
# Samples to compare whole choices of ranges on, more of small ones: so many as have this many values in activations.
_COMPARED, _MOST_COMPARED, _COMPARED_VALUES = 32, 64, 64 << 20
# The least number of a tensor's values to evaluate its range on, as far as there are any.
_FEWEST_VALUES = 4096
# The least number of samples for the same.
_FEWEST_SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fit of integers to samples.

    Attributes:
        name: its name.
        apply: returns candidates with it.
        is_required: whether it is requested by name.
    """

    name: str
    apply: Correction
    is_required: bool


def choose_among_methods(
    candidates: QuantizedCandidates,
    samples: TuningSplit,
    wanted: SearchConfig,
    progress: Progress,
    *,
    threads: int = 0,
    stop: Callable[[], bool] = never,
    workers: Workers = IN_THIS_PROCESS,
) -> QuantizedCandidates:
    """Returns ``candidates`` with each activation's range chosen among the methods, as far as time allows.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    plan = candidates.plan()
    if not plan.activations:
        return candidates
    full = useful_statistics(plan, with_moved_tensors(candidates.model, plan, candidates.statistics))
    searched = len({activation.source for activation in plan.activations.values()})
    batches = max(_most_batches(wanted.evaluation_batches, searched), _fewest_batches(full))
    feeds = list(samples.some_held(batches, least=_FEWEST_SAMPLES))
    choice = choose_ranges(
        with_logits(candidates.model),
        plan,
        full,
        feeds,
        progress,
        others=samples.some(_compared_batches(full, max(batch_length(feeds[0]), 1))),
        each=wanted.each_range,
        threads=threads,
        stop=stop,
        workers=workers,
    )
    chosen = replace(candidates.corrections, ranges=choice.params, methods=choice.methods)
    return replace(candidates, corrections=chosen)


class CorrectionSearch:
    """Finds the corrections that help; those that are requested by name are always applied."""

    def __init__(
        self,
        samples: TuningSplit,
        wanted: SearchConfig,
        progress: Progress,
        *,
        ablation: CorrectionAblation | None,
        threads: int = 0,
        stop: Callable[[], bool] = never,
        workers: Workers = IN_THIS_PROCESS,
    ) -> None:
        """Takes the samples; without ``ablation`` nothing is evaluated, and all wanted corrections are applied.

        Once ``stop`` returns True, searches end and corrections that were not requested by name are left out.
        ``workers`` do what depends on no other layer or tensor.
        """
        self._samples = samples
        self._wanted = wanted
        self._progress = progress
        self._ablation = ablation
        self._threads = threads
        self._stop = stop
        self._workers = workers

    def correct(self, candidates: QuantizedCandidates) -> QuantizedCandidates:
        """Returns ``candidates``, which have plain ranges and rounding, with the corrections that help.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
        """
        corrections = self._corrections(candidates)
        open_to_doubt: dict[str, Correction] = {}
        for name, (use, correction) in corrections.items():
            if use is Policy.ALWAYS or (use is Policy.IF_BETTER and self._ablation is None):
                candidates = correction(candidates)
            elif use is Policy.IF_BETTER:
                open_to_doubt[name] = correction
        if self._ablation is not None and open_to_doubt:
            with self._progress.task("evaluating corrections", 1 + len(open_to_doubt)) as advance:
                candidates = self._ablation.best(candidates, open_to_doubt, advance=advance, stop=self._stop)
        return candidates

    def _corrections(self, candidates: QuantizedCandidates) -> dict[str, tuple[Policy, Correction]]:
        """Returns the corrections to try, by name, with all data they need."""
        wanted = self._wanted
        corrections: dict[str, tuple[Policy, Correction]] = {}
        algorithms = {name: wanted.policy_of(name) for name in WEIGHT_ALGORITHMS}
        guided = set(algorithms.values()) - {Policy.NEVER}
        layers = layer_inputs(candidates.model, candidates.plan().integer_nodes) if guided else ()
        rounding = None
        if layers and guided and (Policy.ALWAYS in guided or not self._stop()):
            # Before the ranges of single tensors, which take all the time that is left and gain less.
            rounding = self._guided_rounding(candidates, layers)
        if wanted.ranges:
            chosen = choose_among_methods(
                candidates,
                self._samples,
                wanted,
                self._progress,
                threads=self._threads,
                stop=self._stop,
                workers=self._workers,
            )
            corrections["chosen ranges"] = Policy.IF_BETTER, partial(_with_ranges, chosen.corrections)
        if rounding is not None:
            for name, use in algorithms.items():
                corrections[name] = use, partial(_with_rounding, rounding, name)
        corrections["bias correction"] = wanted.bias_correction, _with_corrected_biases
        return corrections

    def _guided_rounding(self, candidates: QuantizedCandidates, layers: Sequence[LayerInput]) -> WeightRounding:
        with (
            watching(candidates.model, hessian_tensors(layers)) as graph,
            open_graph(graph, threads=self._threads) as session,
            self._progress.task("collecting the Hessians of layers' inputs"),
        ):
            hessians = gather_hessians(Watcher(session), self._samples.some(self._wanted.seen_batches), layers)
        return WeightRounding(layers, hessians, workers=self._workers)

    def fit(self, candidates: QuantizedCandidates, kept_float: Mapping[str, str]) -> QuantizedCandidates:
        """Returns ``candidates`` with fitted biases where they help, once it is known what stays float.

        Integers are learned as well where that is required.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the model.
        """
        use = self._wanted.layer_reconstruction
        count = self._samples.held(self._wanted.fitted_samples, graphs=2)
        if use is Policy.ALWAYS or (use is Policy.IF_BETTER and not self._stop()):
            # Biases alone cannot overfit a few samples.
            feeds = self._samples.spread(count)
            fitted = partial(self._fitted, candidates, kept_float, feeds, rounding=False)
            candidates = self._kept_if_better(candidates, "layer reconstruction, biases", fitted, kept_float, use)
        if self._wanted.learned_rounding is Policy.ALWAYS:
            learned = partial(self._rounded, candidates, kept_float, self._samples.spread(count))
            candidates = self._kept_if_better(candidates, LEARNED_ROUNDING, learned, kept_float, Policy.ALWAYS)
        return candidates

    def fits(self, kept_float: Mapping[str, str]) -> tuple[Fit, ...]:
        """Returns what fits integers, each to be evaluated on samples of which this search knows none."""
        count = self._samples.held(self._wanted.fitted_samples, graphs=2)
        found = []
        if self._wanted.layer_reconstruction is not Policy.NEVER:
            asked = self._wanted.layer_reconstruction is Policy.ALWAYS
            reconstructed = partial(self._reconstructed, kept_float=kept_float, count=count)
            found.append(Fit(name=LAYER_RECONSTRUCTION, apply=reconstructed, is_required=asked))
        # Where it is required, the search has done it.
        if self._wanted.learned_rounding is Policy.IF_BETTER:
            learned = partial(self._learned, kept_float=kept_float, count=count)
            found.append(Fit(name=LEARNED_ROUNDING, apply=learned, is_required=False))
        return tuple(found)

    def _kept_if_better(
        self,
        candidates: QuantizedCandidates,
        name: str,
        change: Callable[[], QuantizedCandidates],
        kept_float: Mapping[str, str],
        use: Policy,
    ) -> QuantizedCandidates:
        if not candidates.plan(kept_float).integer_nodes:
            return candidates
        if self._ablation is None:
            return change()
        return self._ablation.first_of(candidates, {name: change}, kept_float, always=use is Policy.ALWAYS)

    def _reconstructed(
        self, candidates: QuantizedCandidates, *, kept_float: Mapping[str, str], count: int
    ) -> QuantizedCandidates:
        return self._fitted(candidates, kept_float, self._samples.spread_over_all(count), rounding=True)

    def _learned(
        self, candidates: QuantizedCandidates, *, kept_float: Mapping[str, str], count: int
    ) -> QuantizedCandidates:
        return self._rounded(candidates, kept_float, self._samples.spread_over_all(count))

    def _fitted(
        self,
        candidates: QuantizedCandidates,
        kept_float: Mapping[str, str],
        feeds: Sequence[Feed],
        *,
        rounding: bool,
    ) -> QuantizedCandidates:
        """Returns ``candidates`` with biases, and with ``rounding`` integers, fitted to ``feeds`` layer by layer."""
        plan = candidates.plan(kept_float)
        known = candidates.corrections
        activations, weights = quantities(candidates.model, plan, candidates.statistics, candidates.method, known)
        found = reconstruct(
            candidates.model,
            plan,
            candidates.scheme,
            activations,
            weights,
            feeds,
            self._progress,
            rounding=rounding,
            threads=self._threads,
            stop=self._stop,
        )
        changed = replace(known, rounding=known.rounding.with_fitted(found.weights), biases=found.biases)
        return replace(candidates, corrections=changed)

    def _rounded(
        self, candidates: QuantizedCandidates, kept_float: Mapping[str, str], feeds: Sequence[Feed]
    ) -> QuantizedCandidates:
        """Returns ``candidates`` with integers and biases that gradients improved on ``feeds``."""
        from qtool.learn.learned_rounding import learn_rounding

        plan = candidates.plan(kept_float)
        known = candidates.corrections
        activations, weights = quantities(candidates.model, plan, candidates.statistics, candidates.method, known)
        found = learn_rounding(
            candidates.model,
            plan,
            candidates.scheme,
            activations,
            weights,
            feeds,
            self._progress,
            threads=self._threads,
            stop=self._stop,
        )
        fitted = {**{name: weights[name] for name in known.rounding.fitted}, **found.weights}
        changed = replace(
            known,
            rounding=known.rounding.with_fitted(fitted),
            biases={**known.biases, **found.biases},
        )
        return replace(candidates, corrections=changed)


def _with_ranges(chosen: Corrections, candidates: QuantizedCandidates) -> QuantizedCandidates:
    return replace(
        candidates, corrections=replace(candidates.corrections, ranges=chosen.ranges, methods=chosen.methods)
    )


def _with_rounding(guided: WeightRounding, algorithm: str, candidates: QuantizedCandidates) -> QuantizedCandidates:
    rounding = guided.form({*candidates.corrections.rounding.algorithms, algorithm})
    return replace(candidates, corrections=replace(candidates.corrections, rounding=rounding))


def _with_corrected_biases(candidates: QuantizedCandidates) -> QuantizedCandidates:
    return replace(candidates, bias_correction=True)


def _most_batches(usual: int, searched: int) -> int:
    """Returns how many batches ranges are chosen on: ``usual`` for a model of many tensors, which are ``searched``.

    A few samples that the model is unsure of may hold most of the noise: more are taken where that costs little.
    """
    return usual * min(max(_MANY_TENSORS // max(searched, 1), 1), _MOST_TIMES)


def _compared_batches(statistics: Mapping[str, TensorStatistics], rows: int) -> int:
    """Returns on how many batches, of so many rows, whole choices of ranges are compared."""
    values = sum(seen.values / seen.batches for seen in statistics.values() if seen.batches)
    samples = _COMPARED_VALUES * rows / max(values, 1.0)
    return math.ceil(min(max(samples, _COMPARED), _MOST_COMPARED) / rows)


def _fewest_batches(statistics: Mapping[str, TensorStatistics]) -> int:
    """Returns how many batches give each tensor some thousands of values on average.

    A small tensor has few values per sample, which is too few to choose its range by.
    """
    sizes = [seen.values / seen.batches for seen in statistics.values() if seen.batches]
    return math.ceil(_FEWEST_VALUES * len(sizes) / max(sum(sizes), 1.0))
