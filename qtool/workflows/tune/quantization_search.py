"""All searches of a quantization, in order: rewriting, corrections, mixed precision, embedding tables."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from qtool.backends.execution_choice import execution_for, timing_of
from qtool.calib.specs import Feed
from qtool.cluster.work import IN_THIS_PROCESS, Workers
from qtool.graph.collection_pause import leaving_no_garbage
from qtool.graph.tensor_sizes import TensorSize
from qtool.metrics.latency import Interval
from qtool.progress import Progress
from qtool.schemes import Scheme
from qtool.search.correction_ablation import CorrectionAblation, Gain
from qtool.search.float_fallback import PERFECT_DB, Affordable
from qtool.search.logits_view import viewed_by_logits
from qtool.search.output_evaluator import OutputEvaluator
from qtool.selection import NodeSelection
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune.correction_search import CorrectionSearch, Fit
from qtool.workflows.tune.efforts import Policy, SearchConfig
from qtool.workflows.tune.float_fallback_search import FloatFallbackSearch, KeptFloat
from qtool.workflows.tune.rewriting import CROSS_LAYER_EQUALIZATION, SMOOTHQUANT, Rewriter, Rewritten
from qtool.workflows.tune.sample_selection import NOTHING_CHOSEN, ChosenSamples
from qtool.workflows.tune.search_time import SearchTime
from qtool.workflows.tune.speed import speedups
from qtool.workflows.tune.stopwatch import Stopwatch
from qtool.workflows.tune.time_plan import TimePlan
from qtool.workflows.tune.timing import Timing
from qtool.workflows.tune.tuning_split import TuningSplit
from qtool.workflows.tune.unsigned_weights import with_unsigned_weights

# Embedding tables of a quarter of their size may cost this much, in dB.
_TABLES_DB = 0.5
# The cost of a rewriting before ranges are chosen predicts little about its gain afterwards.
_DOUBT_DB = 1.0
# Where nothing else is asked for, layers with more of the multiply-adds do not stay float for accuracy: other machines
# are not as fast at them as this one may be.
_MOST_PRODUCTS = 0.06


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One form of the float model to start from.

    Attributes:
        rewritten: the model and its changes.
        candidates: makes quantized candidates of it.
        samples: how many samples its ranges come from.
    """

    rewritten: Rewritten
    candidates: QuantizedCandidates
    samples: int


class QuantizationSearch:
    """Runs the searches for one model, as far as there are samples."""

    def __init__(
        self,
        original: ir.Model,
        scheme: Scheme,
        selection: NodeSelection,
        wanted: SearchConfig,
        samples: CheckSamples | None,
        progress: Progress,
        *,
        held_back: ChosenSamples = NOTHING_CHOSEN,
        timed_on: Feed | None = None,
        threads: int = 0,
        workers: Workers = IN_THIS_PROCESS,
    ) -> None:
        """Runs the float model on the evaluation samples, where any decision depends on them.

        Models are timed on ``timed_on``, one sample; None where nothing is timed. No decision depends on ``held_back``.
        ``workers`` do what divides into tasks.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            CalibError: the data does not fit the model.
        """
        self._original = original
        self._scheme = scheme
        self._selection = selection
        self._wanted = wanted
        self._progress = progress
        self._threads = threads
        self._timed_on = timed_on
        self._workers = workers
        self._time = SearchTime((time.monotonic, lambda: time.process_time() + workers.busy_s))
        evaluation_samples = wanted.evaluation_samples if wanted.need_evaluator else 0
        self._samples = (
            None
            if samples is None
            else TuningSplit(original, samples, evaluation_samples=evaluation_samples, held_back=held_back)
        )
        self._evaluator: OutputEvaluator | None = None
        self._ablation: CorrectionAblation | None = None
        if self._samples is not None and evaluation_samples:
            feeds = self._samples.evaluation
            run = execution_for(scheme)
            # After a Softmax or Sigmoid most samples are saturated, and a single one that flips would decide.
            self._evaluator = OutputEvaluator(original, feeds, view=viewed_by_logits, execution=run, threads=threads)
            if wanted.limited and samples is not None:
                count = samples.data.available(samples.dataset) or self._evaluator.samples
                self._time.limit(self._evaluator.seconds * count / max(self._evaluator.samples, 1))
            # Outputs that hide no logits are what is evaluated in any case.
            hides_logits = viewed_by_logits(original) is not original
            outputs = OutputEvaluator(original, feeds, execution=run, threads=threads) if hides_logits else None
            self._ablation = CorrectionAblation(self._evaluator, veto=outputs)

    @property
    def stopped(self) -> str | None:
        """Why the search ended early, in words; None where it did not."""
        return self._time.stopped

    @property
    def gains(self) -> tuple[Gain, ...]:
        """The effect of every correction that was tried on the outputs."""
        return () if self._ablation is None else tuple(self._ablation.gains)

    def rewritten(self, model: ir.Model) -> tuple[Rewritten, ...]:
        """Returns forms of the prepared float model to start from, the most promising first."""
        plain = Rewritten(model=model)
        if self._samples is None:
            return (plain,)
        wanted = self._wanted
        must = Policy.ALWAYS in (wanted.cross_layer_equalization, wanted.smoothquant)
        doubts = wanted.doubts_rewriting and self._ablation is not None and not must
        rewriter = Rewriter(
            self._scheme,
            self._selection,
            self._samples,
            wanted,
            self._progress,
            ablation=self._ablation,
            doubt_db=_DOUBT_DB if doubts else 0.0,
            threads=self._threads,
            stop=self._time.is_over,
        )
        found = rewriter.rewrite(model)
        return (found, plain) if doubts and found.is_changed else (found,)

    def corrected(self, starts: Sequence[Start]) -> Start:
        """Returns the best start after corrections; the starts come without any."""
        if self._samples is None:
            (start,) = starts
            corrected = self._wanted.bias_correction is not Policy.NEVER
            return replace(start, candidates=replace(start.candidates, bias_correction=corrected))
        correct = self._correction_search(self._samples).correct
        if self._ablation is None or len(starts) == 1:
            return replace(starts[0], candidates=correct(starts[0].candidates))
        place, candidates = self._ablation.better_of([start.candidates for start in starts], correct)
        if not starts[place].rewritten.is_changed:
            self._ablation.undo((CROSS_LAYER_EQUALIZATION, SMOOTHQUANT))
        return replace(starts[place], candidates=candidates)

    def fitted(self, candidates: QuantizedCandidates, kept_float: Mapping[str, str]) -> QuantizedCandidates:
        """Returns candidates reconstructed against the float model, with the nodes of ``kept_float`` in float."""
        return (
            candidates if self._samples is None else self._correction_search(self._samples).fit(candidates, kept_float)
        )

    def fits(self, kept_float: Mapping[str, str]) -> Sequence[Fit]:
        """Returns what fits integers to this search's samples; see ``CorrectionSearch.fits``."""
        return () if self._samples is None else self._correction_search(self._samples).fits(kept_float)

    def _correction_search(self, samples: TuningSplit) -> CorrectionSearch:
        return CorrectionSearch(
            samples,
            self._wanted,
            self._progress,
            ablation=self._ablation,
            threads=self._threads,
            stop=self._time.is_over,
            workers=self._workers,
        )

    def timed(
        self, candidates: QuantizedCandidates, timing: Timing, sizes: Mapping[str, TensorSize] | None = None
    ) -> TimePlan | None:
        """Finds the layers that save time on integers; None without a sample to time them on.

        ``sizes`` are those of the tensors of the candidates' float model for that sample, where they are known.
        """
        if self._timed_on is None:
            return None
        return TimePlan(
            self._original,
            candidates,
            self._timed_on,
            timing,
            self._progress,
            sizes=sizes,
            times_layers=self._wanted.times_layers,
            threads=self._threads,
        )

    def unsigned(self, candidates: QuantizedCandidates, times: TimePlan | None) -> QuantizedCandidates:
        """Returns candidates with u8 weights in some layers, where the target supports it and accuracy improves."""
        if self._evaluator is None or times is None:
            return candidates
        return with_unsigned_weights(candidates, self._evaluator, times.cost(), self._progress, stop=self._time.is_over)

    def float_fallback(
        self, candidates: QuantizedCandidates, times: TimePlan | None, *, budget_s: float | None = None
    ) -> tuple[QuantizedCandidates, KeptFloat | None]:
        """Returns candidates, some of whose layers may be dynamic, and the layers to keep float.

        Without a search for them there are none. The search takes about ``budget_s`` seconds at most.
        """
        if self._samples is None or self._evaluator is None or times is None or not self._wanted.keeps_float:
            return candidates, None
        if budget_s is None and self._time.is_over():
            return candidates, None
        left_s = min(self._time.left_s, math.inf if budget_s is None else budget_s)
        cost = times.cost()
        # Weights in u8 have taken their part already.
        unsigned = cost.slowdown_of_unsigned(candidates.scheme.unsigned_layers)
        most_slower = max(self._wanted.most_slower - unsigned, 0.0)
        fallback_search = FloatFallbackSearch(
            self._original,
            candidates,
            self._evaluator,
            self._samples,
            self._progress,
            cost=cost,
            # For a tenth of the integers' savings.
            price=self._wanted.float_price * 0.1 / cost.share_of_slowdown(0.01),
            affordable=self._affordable(candidates, times, most_slower),
            budget_s=None if math.isinf(left_s) else left_s,
            threads=self._threads,
            workers=self._workers,
        )
        most, most_products = self._wanted.most_float, 1.0
        if most is None:
            most, most_products = min(cost.share_of_slowdown(most_slower), 1.0), _MOST_PRODUCTS
        found = fallback_search.search(most=most, most_products=most_products, every_short=self._wanted.every_short)
        self._time.is_over()
        return fallback_search.candidates, found

    def _affordable(self, candidates: QuantizedCandidates, times: TimePlan, most_slower: float) -> Affordable | None:
        """Returns what times float layers, where models are timed."""
        if self._timed_on is None or not times.times_choices:
            return None
        return Stopwatch(
            self._original,
            candidates,
            self._timed_on,
            times,
            self._progress,
            most_slower=most_slower,
            most_float=self._wanted.most_float,
            threads=self._threads,
        )

    def allows_tables(self, before: ir.Model, after: ir.Model) -> bool:
        """Returns whether embedding tables may be integers, as in ``after``; without samples they may."""
        if self._evaluator is None:
            return True
        return self._evaluator.sqnr_db(after) >= min(self._evaluator.sqnr_db(before) - _TABLES_DB, PERFECT_DB)

    def speedup(self, quantized: ir.Model) -> Interval | None:
        """Returns the speedup of ``quantized`` over float, from a few runs.

        None without a sample, and where its runtime is not here.
        """
        runtime = timing_of(self._scheme)
        if self._timed_on is None or runtime is None:
            return None
        with leaving_no_garbage():
            return speedups(
                self._original, [quantized], self._timed_on, self._progress, runtime=runtime, threads=self._threads
            )[0]
