"""One search of a static quantization: forms of the float model, corrections, and the layers that stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qtool.backends.execution_choice import execution_for
from qtool.calib.collect import Collected
from qtool.calib.statistics_file import StoredStatistics
from qtool.cluster.work import IN_THIS_PROCESS, Workers
from qtool.errors import InputError, UsageError
from qtool.fingerprint import graph_fingerprint
from qtool.plan import NOTHING_KEPT, NOTHING_UNFIT, Plan
from qtool.planning import build_plan
from qtool.progress import Progress
from qtool.workflows.quantize.calibrate import Watched
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.prepared_model import PreparedModel, calibrated_candidates
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.quantize.request import QuantizeRequest
from qtool.workflows.shards.gather_in_tasks import gather_by
from qtool.workflows.tune.accuracy_target import AccuracyTarget, FloatLayers
from qtool.workflows.tune.efforts import SearchConfig
from qtool.workflows.tune.float_fallback_search import KeptFloat
from qtool.workflows.tune.quantization_search import QuantizationSearch, Start
from qtool.workflows.tune.rewriting import Rewritten
from qtool.workflows.tune.sample_selection import NOTHING_CHOSEN, ChosenSamples
from qtool.workflows.tune.time_plan import TimePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNodes:
    """The nodes that stay float for accuracy, and the search that chose them: for a goal, or for its worth."""

    nodes: Mapping[str, str]
    target: AccuracyTarget | None = None
    found: FloatLayers | None = None
    fallback: KeptFloat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What one search ended with.

    Attributes:
        search: it.
        starts: the forms of the float model that it started from, before any correction.
        start: the one that it ended with.
        candidates: makes quantized candidates with everything that it found.
        times: the latency of the layers; None where nothing is timed.
        kept: the nodes that stay float for accuracy.
    """

    search: QuantizationSearch
    starts: Sequence[Start]
    start: Start
    candidates: QuantizedCandidates
    times: TimePlan | None
    kept: KeptNodes


class StaticSearch:
    """Runs searches for one prepared model."""

    def __init__(
        self,
        prepared: PreparedModel,
        stored: StoredStatistics | None,
        request: QuantizeRequest,
        progress: Progress,
        workers: Workers = IN_THIS_PROCESS,
    ) -> None:
        """Takes the model, its statistics where they are stored, and who does what divides into tasks."""
        self._prepared = prepared
        self._stored = stored
        self._samples = check_samples(prepared, stored)
        self._request = request
        self._progress = progress
        self._workers = workers

    @property
    def samples(self) -> CheckSamples | None:
        """The samples that searches may use; None where there are none, or statistics of them are stored."""
        return self._samples if self._stored is None else None

    def run(
        self, wanted: SearchConfig, *, held_back: ChosenSamples = NOTHING_CHOSEN, before: SearchResult | None = None
    ) -> SearchResult:
        """Searches as ``wanted`` says.

        Args:
            wanted: what to try.
            held_back: samples that nothing is tuned on; the ranges of activations come from all samples.
            before: the result of another search, whose statistics and times are used again.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a model.
            CalibError: the data does not fit the model.
        """
        prepared, request, progress = self._prepared, self._request, self._progress
        search = QuantizationSearch(
            prepared.original,
            request.scheme,
            request.selection,
            wanted,
            self.samples,
            progress,
            held_back=held_back,
            timed_on=None if prepared.calibration is None else prepared.calibration.sample,
            threads=request.threads,
            workers=self._workers,
        )
        known = () if before is None else before.starts
        forms = search.rewritten(prepared.model)
        times = None if before is None else before.times
        slow = NOTHING_KEPT
        knows_sizes = prepared.calibration is not None and forms[0].model is prepared.model
        sizes = prepared.samples.sizes if knows_sizes else None
        is_timed = before is None and request.asks_for_times
        if is_timed and not wanted.times_layers:
            # Predictions need no statistics, and what they keep float needs none either.
            times = search.timed(self._uncalibrated(forms[0].model), request.timing, sizes)
            slow = NOTHING_KEPT if times is None else times.slow_nodes()
        starts = [self._start(rewritten, known, slow) for rewritten in forms]
        if is_timed and wanted.times_layers:
            times = search.timed(starts[0].candidates, request.timing, sizes)
        slow = NOTHING_KEPT if times is None else times.slow_nodes()
        start = search.corrected([replace(start, candidates=replace(start.candidates, slow=slow)) for start in starts])
        candidates, kept = self._kept_float(search, start, times)
        candidates = search.fitted(candidates, kept.nodes)
        return SearchResult(search=search, starts=starts, start=start, candidates=candidates, times=times, kept=kept)

    def _kept_float(
        self, search: QuantizationSearch, start: Start, times: TimePlan | None
    ) -> tuple[QuantizedCandidates, KeptNodes]:
        """Chooses the layers that stay float for accuracy; some layers of the candidates may become dynamic."""
        request, samples = self._request, self._samples
        candidates = search.unsigned(start.candidates, times)
        if request.goal is None or samples is None or times is None:
            candidates, fallback = search.float_fallback(candidates, times, budget_s=request.time_budget_s)
            nodes = {} if fallback is None else fallback.choice.kept_float()
            return candidates, KeptNodes(nodes=nodes, fallback=fallback)
        execution = execution_for(request.scheme)
        target = AccuracyTarget(
            self._prepared.original,
            request.goal,
            samples,
            execution=execution,
            threads=request.threads,
            workers=self._workers,
        )
        found = target.search(
            candidates.model, candidates, times.cost(), self._progress, budget_s=request.time_budget_s
        )
        return candidates, KeptNodes(nodes=found.kept_float, target=target, found=found)

    def _uncalibrated(self, model: ir.Model) -> QuantizedCandidates:
        """Returns candidates of a form of the model that can be planned, but not quantized."""
        return QuantizedCandidates(
            model=model,
            scheme=self._request.scheme,
            selection=self._request.selection,
            unfit=NOTHING_UNFIT,
            statistics={},
            method=self._request.method,
        )

    def _start(self, rewritten: Rewritten, known: Sequence[Start], slow: Mapping[str, str]) -> Start:
        """Returns the candidates of a form of the model, without the tensors found unfit by calibration.

        The nodes of ``slow`` stay float in all of them.
        """
        for start in known:
            if start.rewritten.model is rewritten.model:
                return start
        stored, samples, request = self._stored, self._samples, self._request
        model, plan = rewritten.model, self._prepared.plan
        if slow:
            plan = build_plan(model, request.scheme, request.selection, kept_float=slow, may_be_empty=True)
        elif model is not self._prepared.model:
            plan = build_plan(model, request.scheme, request.selection, may_be_empty=may_be_empty(request))
            check_plan(plan)
        if stored is not None:
            collected = _checked_statistics(stored, model, request.statistics)
        elif samples is not None:
            collected = gather_by(self._workers)(
                model,
                Watched.by(plan),
                samples.dataset,
                samples.data,
                self._progress,
                holdout=samples.holdout,
                threads=request.threads,
            )
        else:
            raise AssertionError("a request has data or statistics")
        candidates = calibrated_candidates(
            model,
            plan,
            collected.statistics,
            scheme=request.scheme,
            selection=request.selection,
            method=request.method,
            bias_correction=False,
        )
        return Start(rewritten=rewritten, candidates=candidates, samples=collected.samples)


def may_be_empty(request: QuantizeRequest) -> bool:
    """Tells whether a model without quantizable nodes stays float; --include and --exclude must leave some node."""
    return not (request.selection.include or request.selection.exclude)


def check_plan(plan: Plan) -> None:
    """Refuses a plan for the static scheme whose layers are all dynamic.

    Raises:
        UsageError: --dynamic leaves nothing else.
    """
    if plan.dynamic.integer_nodes and not plan.integer_nodes:
        raise UsageError("--dynamic leaves no node for the static scheme", fix="use --scheme dynamic instead")


def check_samples(prepared: PreparedModel, stored: StoredStatistics | None) -> CheckSamples | None:
    """Returns the samples to compare on, some of which calibration leaves out."""
    calibration = prepared.calibration
    if calibration is None:
        return None
    # Stored statistics include all of the data: nothing can be held out from them.
    batches = calibration.data.batches(calibration.dataset, *prepared.interface) if stored is None else 0
    return CheckSamples(
        dataset=calibration.dataset,
        data=calibration.data,
        holdout=HoldoutSplit.of(batches),
        memory=calibration.memory,
    )


def _checked_statistics(stored: StoredStatistics, model: ir.Model, path: Path | None) -> Collected:
    if stored.origin.get("model") != graph_fingerprint(model):
        raise InputError(
            f"the statistics in {path} are of another model",
            fix="calibrate this model again with `qtool calibrate`, with the same --target and --activations-symmetric",
        )
    return stored.collected
