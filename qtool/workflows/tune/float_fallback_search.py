"""Mixed precision without a goal: dynamic or float layers where static quantization costs much accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from qtool.backends.execution_choice import execution_for
from qtool.backends.registry import backend_named
from qtool.cluster.work import IN_THIS_PROCESS, Workers, threads_of
from qtool.planning import build_dynamic_plan
from qtool.progress import Progress
from qtool.schemes import as_dynamic
from qtool.search.dynamic_choice import better_dynamic
from qtool.search.float_cost import FloatCost
from qtool.search.float_fallback import Affordable, FloatFallback, best_fallback, could_gain
from qtool.search.logits_view import viewed_by_logits
from qtool.search.node_groups import NodeGroup, node_groups
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.sensitivity import LayerNoise, rank_layers
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune.tuning_split import TuningSplit

_RANKING_SAMPLES = 8
# Dynamic ranges cost a pass over each activation; they have to gain at least this much, in dB.
_LEAST_GAIN_DB = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFloat:
    """The result of the search.

    Attributes:
        choice: the layers that stay float.
        dynamic: the layers with dynamic quantization.
        plain_db: SQNR of the worst output in dB of the fully static model.
        samples: how many samples it was evaluated on.
        stopped: why the search ended early, in words; None when it did not.
    """

    choice: FloatFallback
    dynamic: tuple[str, ...]
    plain_db: float
    samples: int
    stopped: str | None


class FloatFallbackSearch:
    """Searches one model; after an interrupt, or at the end of its time, it holds the best so far.

    Attributes:
        candidates: makes candidates, with the layers chosen to be dynamic.
        best: the layers to keep float.
        stopped: why the search ended early, in words; None when it did not.
    """

    def __init__(
        self,
        original: ir.Model,
        candidates: QuantizedCandidates,
        evaluator: OutputEvaluator,
        samples: TuningSplit,
        progress: Progress,
        *,
        cost: FloatCost,
        price: float,
        affordable: Affordable | None = None,
        budget_s: float | None = None,
        threads: int = 0,
        workers: Workers = IN_THIS_PROCESS,
    ) -> None:
        """Evaluates the fully quantized model.

        Args:
            original: the float model.
            candidates: makes candidates of it.
            evaluator: measures them.
            samples: the batches to rank layers on.
            progress: receives the steps.
            cost: the latency model.
            affordable: times choices; None to trust the estimates.
            price: the gain in dB required for giving up a tenth of the integers' savings.
            budget_s: seconds after which the search ends.
            threads: threads inside an operator; 0 is one per core.
            workers: who measures one layer at a time.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a model.
        """
        self._original = original
        self._evaluator = evaluator
        self._samples = samples
        self._progress = progress
        self._threads = threads
        self._workers = workers
        self._cost = cost
        self._affordable = affordable
        self._budget_s = budget_s
        self._end = math.inf if budget_s is None else time.monotonic() + budget_s
        everything = candidates({})
        self._plain_db = evaluator.sqnr_db(everything.model)
        self._groups = node_groups(candidates.model, everything.plan)
        self.candidates = candidates
        self.best = FloatFallback(layers=(), sqnr_db=self._plain_db, share=0.0, price=price)
        self.stopped: str | None = None

    def search(self, *, most: float, most_products: float = 1.0, every_short: bool = False) -> KeptFloat:
        """Searches for layers that are better dynamic, and then for those to keep float.

        Args:
            most: the largest fraction of the integers' savings to give up once the model is usable, 0 to 1.
            most_products: the largest fraction of the multiply-adds in float then, 0 to 1.
            every_short: see ``best_fallback``.
        """
        if could_gain(self._plain_db) and self._groups:
            try:
                self._run(most, most_products, every_short=every_short)
                if self._is_over():
                    self.stopped = f"the time budget of {self._budget_s:.4g} s was used up"
            except KeyboardInterrupt:
                self.stopped = "interrupted"
        kept = {layer.group.layer for layer in self.best.layers}
        return KeptFloat(
            choice=self.best,
            dynamic=tuple(name for name in self.candidates.dynamic if name not in kept),
            plain_db=self._plain_db,
            samples=self._evaluator.samples,
            stopped=self.stopped,
        )

    def _run(self, most: float, most_products: float, *, every_short: bool) -> None:
        feeds = self._samples.spread(_RANKING_SAMPLES)
        ranking = OutputEvaluator(
            self._original,
            feeds,
            view=viewed_by_logits,
            execution=execution_for(self.candidates.scheme),
            threads=threads_of(self._workers, self._threads),
        )
        with self._progress.task("quantizing one layer at a time", len(self._groups)) as advance:
            ranked = rank_layers(
                self.candidates, self._groups, ranking, advance=advance, stop=self._is_over, workers=self._workers
            )
        ranked = self._with_dynamic(ranked, ranking)
        place = {group.layer: number for number, group in enumerate(self._groups)}
        in_order = sorted(ranked, key=lambda layer: place[layer.group.layer])
        with self._progress.task("trying which layers to keep float") as advance:
            self.best = best_fallback(
                self.candidates,
                self._evaluator,
                self.best,
                ranked,
                in_order,
                self._cost,
                most=most,
                most_products=most_products,
                every_short=every_short,
                advance=advance,
                stop=self._is_over,
                affordable=self._affordable,
            )

    def _with_dynamic(self, ranked: Sequence[LayerNoise], ranking: OutputEvaluator) -> tuple[LayerNoise, ...]:
        """Makes layers dynamic where that improves the outputs, and returns the noise of each layer then."""
        eligible = self._eligible()
        if not eligible:
            return tuple(ranked)
        # If making all of them dynamic gains too little, a subset gains even less.
        noisy = [layer.group.layer for layer in ranked]
        everywhere = replace(self.candidates, dynamic=tuple(name for name in noisy if name in eligible))
        if self._evaluator.sqnr_db(everywhere({}).model) < self.best.sqnr_db + _LEAST_GAIN_DB:
            return tuple(ranked)
        nodes = [node for group in self._groups for node in group.nodes]
        with self._progress.task("making one layer at a time dynamic") as advance:
            better = better_dynamic(
                lambda names: replace(self.candidates, dynamic=tuple(names)),
                ranked,
                nodes,
                eligible,
                ranking,
                advance=advance,
                stop=self._is_over,
            )
        if not better:
            return tuple(ranked)
        changed = replace(self.candidates, dynamic=tuple(layer.group.layer for layer in better))
        reached = self._evaluator.sqnr_db(changed({}).model)
        if reached < self.best.sqnr_db + _LEAST_GAIN_DB:
            return tuple(ranked)
        self.candidates = changed
        self.best = replace(self.best, sqnr_db=reached)
        now = {layer.group.layer: layer for layer in better}
        return tuple(now.get(layer.group.layer, layer) for layer in ranked)

    def _eligible(self) -> tuple[str, ...]:
        """Returns the static layers that onnxruntime's CPU provider could run with dynamic quantization."""
        scheme, layers = self.candidates.scheme, _products(self._groups)
        if not backend_named(scheme.backend).runs_dynamic_layers or not layers:
            return ()
        possible = build_dynamic_plan(
            self.candidates.model, as_dynamic(scheme), self.candidates.selection, may_be_empty=True
        )
        return tuple(name for name in layers if name in possible.integer_nodes)

    def _is_over(self) -> bool:
        return time.monotonic() >= self._end


def _products(groups: Sequence[NodeGroup]) -> tuple[str, ...]:
    return tuple(group.layer for group in groups if group.operator in ("MatMul", "Gemm"))
