"""Applies corrections that use data: chosen ranges, bias correction, weight clipping, GPTQ, layer reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from qtool.calib.specs import Feed
from qtool.calib.statistics import TensorStatistics
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

# The least number of a tensor's values to evaluate its range on, as far as there are any.
_FEWEST_VALUES = 4096
# The least number of samples for the same.
_FEWEST_SAMPLES = 4


def choose_among_methods(
    candidates: QuantizedCandidates,
    samples: TuningSplit,
    wanted: SearchConfig,
    progress: Progress,
    *,
    threads: int = 0,
    stop: Callable[[], bool] = never,
) -> QuantizedCandidates:
    """Returns ``candidates`` with each activation's range chosen among the methods, as far as time allows.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    plan = candidates.plan()
    if not plan.activations:
        return candidates
    full = useful_statistics(plan, with_moved_tensors(candidates.model, plan, candidates.statistics))
    feeds = list(samples.some_held(max(wanted.evaluation_batches, _fewest_batches(full)), least=_FEWEST_SAMPLES))
    view = with_logits(candidates.model)
    choice = choose_ranges(view, plan, full, feeds, progress, each=wanted.each_range, threads=threads, stop=stop)
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
    ) -> None:
        """Takes the samples; without ``ablation`` nothing is evaluated, and all wanted corrections are applied.

        Once ``stop`` returns True, searches end and corrections that were not requested by name are left out.
        """
        self._samples = samples
        self._wanted = wanted
        self._progress = progress
        self._ablation = ablation
        self._threads = threads
        self._stop = stop

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
        if wanted.ranges:
            chosen = choose_among_methods(
                candidates, self._samples, wanted, self._progress, threads=self._threads, stop=self._stop
            )
            corrections["chosen ranges"] = Policy.IF_BETTER, partial(_with_ranges, chosen.corrections)
        layers = layer_inputs(candidates.model, candidates.plan().integer_nodes)
        algorithms = {name: wanted.policy_of(name) for name in WEIGHT_ALGORITHMS}
        guided = set(algorithms.values()) - {Policy.NEVER}
        if layers and guided and (Policy.ALWAYS in guided or not self._stop()):
            rounding = self._guided_rounding(candidates, layers)
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
        return WeightRounding(layers, hessians)

    def fit(self, candidates: QuantizedCandidates, kept_float: Mapping[str, str]) -> QuantizedCandidates:
        """Returns ``candidates`` after reconstruction of layers and blocks, once it is known what stays float.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the model.
        """
        return self._learned(self._fit_layers(candidates, kept_float), kept_float)

    def _learned(self, candidates: QuantizedCandidates, kept_float: Mapping[str, str]) -> QuantizedCandidates:
        """Returns ``candidates`` with integers and biases that gradients improved."""
        use = self._wanted.learned_rounding
        plan = candidates.plan(kept_float)
        if use is Policy.NEVER or not plan.weights or (use is Policy.IF_BETTER and self._stop()):
            return candidates
        from qtool.learn.learned_rounding import learn_rounding

        def learned() -> QuantizedCandidates:
            activations, weights = quantities(
                candidates.model, plan, candidates.statistics, candidates.method, candidates.corrections
            )
            count = self._samples.held(self._wanted.fitted_samples, graphs=2)
            found = learn_rounding(
                candidates.model,
                plan,
                candidates.scheme,
                activations,
                weights,
                self._samples.spread(count),
                self._progress,
                ranges=True,
                threads=self._threads,
                stop=self._stop,
            )
            known = candidates.corrections
            fitted = {**{name: weights[name] for name in known.rounding.fitted}, **found.weights}
            changed = replace(
                known,
                ranges={**known.ranges, **found.ranges},
                rounding=known.rounding.with_fitted(fitted),
                biases={**known.biases, **found.biases},
            )
            return replace(candidates, corrections=changed)

        if self._ablation is None:
            return learned()
        attempts = {"learned rounding": learned}
        return self._ablation.first_of(candidates, attempts, kept_float, always=use is Policy.ALWAYS)

    def _fit_layers(self, candidates: QuantizedCandidates, kept_float: Mapping[str, str]) -> QuantizedCandidates:
        use = self._wanted.layer_reconstruction
        plan = candidates.plan(kept_float)
        if use is Policy.NEVER or not plan.integer_nodes or (use is Policy.IF_BETTER and self._stop()):
            return candidates
        activations, weights = quantities(
            candidates.model, plan, candidates.statistics, candidates.method, candidates.corrections
        )

        def fitted(feeds: Sequence[Feed], *, rounding: bool) -> QuantizedCandidates:
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
            known = candidates.corrections
            changed = replace(known, rounding=known.rounding.with_fitted(found.weights), biases=found.biases)
            return replace(candidates, corrections=changed)

        # The float model and the quantized one run side by side.
        count = self._samples.held(self._wanted.fitted_samples, graphs=2)
        feeds = self._samples.spread(count)
        # Biases alone cannot overfit a few samples.
        attempts = {"layer reconstruction, biases": partial(fitted, feeds, rounding=False)}
        if self._wanted.fits_weights:
            attempts = {"layer reconstruction": partial(fitted, feeds, rounding=True), **attempts}
        if self._ablation is None:
            return next(iter(attempts.values()))()
        found = self._ablation.first_of(candidates, attempts, kept_float, always=use is Policy.ALWAYS)
        if not found.corrections.rounding.fitted:
            return found
        # It does not overfit: now the evaluation samples may be used for fitting, too.
        return fitted(self._samples.spread_over_all(count), rounding=True)


def _with_ranges(chosen: Corrections, candidates: QuantizedCandidates) -> QuantizedCandidates:
    return replace(
        candidates, corrections=replace(candidates.corrections, ranges=chosen.ranges, methods=chosen.methods)
    )


def _with_rounding(guided: WeightRounding, algorithm: str, candidates: QuantizedCandidates) -> QuantizedCandidates:
    rounding = guided.form({*candidates.corrections.rounding.algorithms, algorithm})
    return replace(candidates, corrections=replace(candidates.corrections, rounding=rounding))


def _with_corrected_biases(candidates: QuantizedCandidates) -> QuantizedCandidates:
    return replace(candidates, bias_correction=True)


def _fewest_batches(statistics: Mapping[str, TensorStatistics]) -> int:
    """Returns how many batches give each tensor some thousands of values on average.

    A small tensor has few values per sample, which is too few to choose its range by.
    """
    sizes = [seen.values / seen.batches for seen in statistics.values() if seen.batches]
    return math.ceil(_FEWEST_VALUES * len(sizes) / max(sum(sizes), 1.0))
