"""Rewrites a float model for quantization before it is calibrated: cross-layer equalization and SmoothQuant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from qtool.calib.collect import collect
from qtool.calib.ranges.min_max import MinMax
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.schemes import Scheme
from qtool.search.correction_ablation import CorrectionAblation
from qtool.selection import NodeSelection
from qtool.workflows.quantize.calibrate import float_outputs
from qtool.workflows.quantize.prepared_model import calibrated_candidates
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune.cross_layer_equalization import equalize_model
from qtool.workflows.tune.efforts import Policy, SearchConfig
from qtool.workflows.tune.smoothquant import smooth_model
from qtool.workflows.tune.tuning_split import TuningSplit

Rewrite = Callable[..., tuple[str, ...]]

CROSS_LAYER_EQUALIZATION, SMOOTHQUANT = "cross-layer equalization", "SmoothQuant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A float model with its changes.

    Attributes:
        model: the model.
        equalized: tensors whose channels were scaled against the layers around them.
        smoothed: tensors whose outlier channels were moved into the weights that multiply them.
    """

    model: ir.Model
    equalized: tuple[str, ...] = ()
    smoothed: tuple[str, ...] = ()

    @property
    def is_changed(self) -> bool:
        """Whether anything was changed."""
        return bool(self.equalized or self.smoothed)


class Rewriter:
    """Tries equivalent rewritings of a prepared float model, with ranges from a few batches."""

    def __init__(
        self,
        scheme: Scheme,
        selection: NodeSelection,
        samples: TuningSplit,
        wanted: SearchConfig,
        progress: Progress,
        *,
        ablation: CorrectionAblation | None,
        doubt_db: float = 0.0,
        threads: int = 0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Takes the settings of the quantization; without ``ablation`` nothing is evaluated.

        A change may cost ``doubt_db`` decibels where it is evaluated again later. Those not requested by name are left
        out once ``stop`` returns True.
        """
        self._scheme = scheme
        self._selection = selection
        self._samples = samples
        self._wanted = wanted
        self._progress = progress
        self._ablation = ablation
        self._doubt_db = doubt_db
        self._threads = threads
        self._stop = stop
        self._compared: tuple[ir.Model, ir.Model] | None = None

    def rewrite(self, model: ir.Model) -> Rewritten:
        """Returns a changed copy, or ``model`` where nothing helps.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            CalibError: the data does not fit the model.
        """
        model, equalized = self._tried(
            CROSS_LAYER_EQUALIZATION, self._wanted.cross_layer_equalization, equalize_model, model
        )
        model, smoothed = self._tried(SMOOTHQUANT, self._wanted.smoothquant, smooth_model, model)
        return Rewritten(model=model, equalized=equalized, smoothed=smoothed)

    def _tried(self, name: str, use: Policy, change: Rewrite, model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
        if use is Policy.NEVER or (use is Policy.IF_BETTER and self._stop()):
            return model, ()
        changed = model.clone()
        plan = self._candidates(changed).plan()
        feeds = self._samples.some(self._wanted.seen_batches)
        tensors = change(changed, plan, feeds, self._progress, threads=self._threads)
        if not tensors:
            return model, ()
        if self._ablation is None:
            return changed, tensors
        # The next change starts from the result of this one.
        compared, before = self._compared or (None, None)
        if before is None or compared is not model:
            before = self._quantized(model)
        after = self._quantized(changed)
        kept = self._ablation.helps(name, before, after, always=use is Policy.ALWAYS, doubt_db=self._doubt_db)
        self._compared = (changed, after) if kept else (model, before)
        return (changed, tensors) if kept else (model, ())

    def _quantized(self, model: ir.Model) -> ir.Model:
        plan = self._candidates(model).plan()
        compared = float_outputs(model)
        with (
            watching(model, tuple(dict.fromkeys((*plan.observed, *compared)))) as graph,
            open_graph(graph, threads=self._threads) as session,
            self._progress.task("calibrating on a few batches"),
        ):
            seen = collect(
                Watcher(session),
                self._samples.some(self._wanted.seen_batches),
                plan.observed,
                channel_axes=plan.channel_axes,
                outputs=compared,
            )
        candidates = calibrated_candidates(
            model, plan, seen.statistics, scheme=self._scheme, selection=self._selection, method=MinMax()
        )
        return candidates({}).model

    def _candidates(self, model: ir.Model) -> QuantizedCandidates:
        return QuantizedCandidates(
            model=model, scheme=self._scheme, selection=self._selection, unfit={}, statistics={}, method=MinMax()
        )
