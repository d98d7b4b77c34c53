"""Looks for a better quantization than one pass over the data gives: chosen ranges, new biases, guided rounding."""

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
from qtool.weights.rounding import WeightRounding
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune.efforts import Policy, SearchConfig
from qtool.workflows.tune.tuning_split import TuningSplit

Correction: TypeAlias = Callable[[QuantizedCandidates], QuantizedCandidates]

# A tensor's range is judged by no fewer of its values, as far as there are any.
_FEWEST_VALUES = 4096
# ... and by no fewer samples.
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
    """Returns ``candidates`` with each activation's range chosen among the methods, as far as there is time for it.

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
    """Finds the corrections that help; those that a person insists on are made anyway."""

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
        """Takes where samples come from; without ``ablation`` nothing is judged, and everything wanted is done.

        What nobody insists on is left out, and searches end, once ``stop`` says so.
        """
        self._samples = samples
        self._wanted = wanted
        self._progress = progress
        self._ablation = ablation
        self._threads = threads
        self._stop = stop

    def correct(self, candidates: QuantizedCandidates) -> QuantizedCandidates:
        """Returns better variants than ``candidates``, which come with plain ranges and rounding.

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
            with self._progress.task("judging corrections", 1 + len(open_to_doubt)) as advance:
                candidates = self._ablation.best(candidates, open_to_doubt, advance=advance, stop=self._stop)
        return candidates

    def _corrections(self, candidates: QuantizedCandidates) -> dict[str, tuple[Policy, Correction]]:
        """Returns what there is to try, by name; what takes a look at the data has taken it."""
        wanted = self._wanted
        corrections: dict[str, tuple[Policy, Correction]] = {}
        if wanted.ranges:
            chosen = choose_among_methods(
                candidates, self._samples, wanted, self._progress, threads=self._threads, stop=self._stop
            )
            corrections["chosen ranges"] = Policy.IF_BETTER, partial(_with_ranges, chosen.corrections)
        layers = layer_inputs(candidates.model, candidates.plan())
        guided = {wanted.gptq, wanted.weight_clipping} - {Policy.NEVER}
        if layers and guided and (Policy.ALWAYS in guided or not self._stop()):
            rounding = self._guided_rounding(candidates, layers)
            corrections["weight clipping"] = wanted.weight_clipping, partial(_with_rounding, rounding, clips=True)
            corrections["GPTQ"] = wanted.gptq, partial(_with_rounding, rounding, feeds_back=True)
        corrections["bias correction"] = wanted.bias_correction, _with_corrected_biases
        return corrections

    def _guided_rounding(self, candidates: QuantizedCandidates, layers: Sequence[LayerInput]) -> WeightRounding:
        with (
            watching(candidates.model, hessian_tensors(layers)) as graph,
            open_graph(graph, threads=self._threads) as session,
            self._progress.task("learning the layers' inputs"),
        ):
            hessians = gather_hessians(Watcher(session), self._samples.some(self._wanted.seen_batches), layers)
        return WeightRounding(layers, hessians)

    def fit(self, candidates: QuantizedCandidates, kept_float: Mapping[str, str]) -> QuantizedCandidates:
        """Returns variants whose layers make up for what is left of noise, once it is known which ones stay float.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the model.
        """
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

        # The float model and the quantized one are walked through side by side.
        count = self._samples.held(self._wanted.fitted_samples, graphs=2)
        feeds = self._samples.spread(count)
        # Biases alone cannot fit too closely to a few samples.
        attempts = {"layer reconstruction, biases": partial(fitted, feeds, rounding=False)}
        if self._wanted.fits_weights:
            attempts = {"layer reconstruction": partial(fitted, feeds, rounding=True), **attempts}
        if self._ablation is None:
            return next(iter(attempts.values()))()
        found = self._ablation.first_of(candidates, attempts, kept_float, always=use is Policy.ALWAYS)
        if not found.corrections.rounding.fitted:
            return found
        # It does not fit too closely: now the samples that have shown it may shape the weights, too.
        return fitted(self._samples.spread_over_all(count), rounding=True)


def _with_ranges(chosen: Corrections, candidates: QuantizedCandidates) -> QuantizedCandidates:
    return replace(
        candidates, corrections=replace(candidates.corrections, ranges=chosen.ranges, methods=chosen.methods)
    )


def _with_rounding(
    guided: WeightRounding, candidates: QuantizedCandidates, *, clips: bool = False, feeds_back: bool = False
) -> QuantizedCandidates:
    known = candidates.corrections.rounding
    rounding = guided.form(clips=clips or known.clips, feeds_back=feeds_back or known.feeds_back)
    return replace(candidates, corrections=replace(candidates.corrections, rounding=rounding))


def _with_corrected_biases(candidates: QuantizedCandidates) -> QuantizedCandidates:
    return replace(candidates, bias_correction=True)


def _fewest_batches(statistics: Mapping[str, TensorStatistics]) -> int:
    """Returns how many batches it takes until some thousands of values judge each tensor on average; more cost little.

    Few values of small tensors say nothing about the ranges of others.
    """
    sizes = [seen.values / seen.batches for seen in statistics.values() if seen.batches]
    return math.ceil(_FEWEST_VALUES * len(sizes) / max(sum(sizes), 1.0))
