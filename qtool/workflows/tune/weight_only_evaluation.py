"""Rounds the weights of one model, and measures quantized forms of it at the outputs and in time."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.metrics.latency import Times
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.qdq.insert_blocks import insert_blocks
from qtool.schemes import WeightOnlyScheme
from qtool.search.block_rounding import guided_by_inputs
from qtool.search.logits_view import with_logits
from qtool.search.output_evaluator import OutputEvaluator
from qtool.weights.block_quantization import BlockWeight
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.tune.time_plan import ROUNDS, times_in_turns
from qtool.workflows.tune.tuning_split import TuningSplit

_EVALUATION_SAMPLES = 32
_SEEN_BATCHES = 32


class WeightOnlyEvaluation:
    """Holds the float model's outputs on the evaluation samples, and makes quantized forms of the model."""

    def __init__(
        self,
        original: ir.Model,
        model: ir.Model,
        scheme: WeightOnlyScheme,
        samples: CheckSamples,
        *,
        threads: int = 0,
    ) -> None:
        """Runs the float model ``original`` on the evaluation samples; ``model`` is the same after ``prepare``.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            CalibError: the data does not fit the model.
        """
        self._original = original
        self._scheme = scheme
        self._threads = threads
        self._split = TuningSplit(original, samples, evaluation_samples=_EVALUATION_SAMPLES)
        self._evaluator = OutputEvaluator(original, self._split.evaluation, view=with_logits, threads=threads)
        self.model = model

    def guided(self, plan: WeightOnlyPlan, progress: Progress) -> tuple[dict[str, BlockWeight], dict[str, BlockWeight]]:
        """Returns the weights by MSE and by GPTQ, see ``guided_by_inputs``."""
        return guided_by_inputs(
            self.model, plan, lambda: self._split.some(_SEEN_BATCHES), progress, threads=self._threads
        )

    def rounded(self, plan: WeightOnlyPlan, progress: Progress) -> dict[str, BlockWeight]:
        """Returns the weights by GPTQ."""
        return self.guided(plan, progress)[1]

    def graph(self, plan: WeightOnlyPlan, weights: Mapping[str, BlockWeight], level: int) -> ir.Model:
        """Returns the quantized model, all of its products with one accuracy level."""
        levels = dict.fromkeys(plan.layers, level)
        return insert_blocks(self.model.clone(), plan, weights, form=self._scheme.form, levels=levels)

    def sqnr_db(self, plan: WeightOnlyPlan, weights: Mapping[str, BlockWeight], level: int = 0) -> float:
        """Returns the SQNR of the worst output, in dB."""
        return self._evaluator.sqnr_db(self.graph(plan, weights, level))

    def times(
        self,
        plan: WeightOnlyPlan,
        weights: Mapping[str, BlockWeight],
        levels: tuple[int, ...],
        sample: Feed,
        progress: Progress,
    ) -> tuple[Times, ...]:
        """Returns the times of the float model, and of the quantized one with each accuracy level, in turns."""
        models = [self._original, *(self.graph(plan, weights, level) for level in levels)]
        with progress.task("timing in turns", ROUNDS) as advance:
            return times_in_turns(models, sample, advance, threads=self._threads)
