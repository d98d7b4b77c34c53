"""Rounds the weights of one model, and measures quantized forms of it at the outputs and in time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.graph.unpacked_product import EXACT_LEVEL, INTEGER_LEVEL, is_unpacked_product
from qtool.llm.perplexity import HeldBackText
from qtool.metrics.latency import Times
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.qdq.insert_blocks import insert_blocks
from qtool.qdq.remove_blocks import RemoveBlocks
from qtool.runtime.profile import kernel_times
from qtool.schemes import WeightOnlyScheme
from qtool.search.activation_noise import activation_noise
from qtool.search.blocks.rounding import GuidedBlocks, guided_by_inputs
from qtool.search.blocks.sequential_rounding import rounded_in_sequence
from qtool.search.blocks.stored_blocks import StoredBlocks
from qtool.search.frugal_execution import FrugalExecution, is_large, open_frugally, unpacks
from qtool.search.logits_view import judged_outputs
from qtool.search.output_evaluator import OutputEvaluator
from qtool.weights.blocks.choices import BlockMethod
from qtool.weights.blocks.quantization import BlockWeight
from qtool.weights.channel_scaling import Floats
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.tune.times_in_turns import ROUNDS, times_in_turns
from qtool.workflows.tune.tuning_split import TuningSplit
from qtool.workflows.tune.weight_only.choice import WeightOnlyChoice

_EVALUATION_SAMPLES = 32
_SEEN_BATCHES = 32
# Batches on which rounded activations are compared with float ones, layer by layer.
_NOISE_BATCHES = 4


class WeightOnlyEvaluation:
    """Holds the float model's outputs on the evaluation samples, and makes quantized forms of the model."""

    def __init__(
        self,
        original: ir.Model,
        model: ir.Model,
        scheme: WeightOnlyScheme,
        samples: CheckSamples,
        folder: Path,
        *,
        evaluation_samples: int = _EVALUATION_SAMPLES,
        threads: int = 0,
    ) -> None:
        """Runs the float model ``original`` on the evaluation samples; ``model`` is the same after ``prepare``.

        Args:
            original: the float model.
            model: the same after ``prepare``.
            scheme: which integers weights become.
            samples: the data.
            folder: where weights are kept until they are needed.
            evaluation_samples: about how many samples models are compared on, at most half of all.
            threads: threads inside an operator; 0 is one per core.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            CalibError: the data does not fit the model.
        """
        self._original = original
        self._scheme = scheme
        self._threads = threads
        self._folder = folder
        # More samples are held back than there is room for their outputs: perplexity needs none of these.
        unlimited = replace(samples, memory=replace(samples.memory, output_bytes=0))
        self._split = TuningSplit(original, unlimited, evaluation_samples=evaluation_samples)
        execution = FrugalExecution()
        feeds = self._split.with_room(judged_outputs(original), execution, threads=threads)
        self._evaluator = OutputEvaluator(original, feeds, view=judged_outputs, execution=execution, threads=threads)
        self._text: HeldBackText | None = None
        self.model = model
        self._unpacks = unpacks(original)

    def guided(
        self,
        plan: WeightOnlyPlan,
        progress: Progress,
        methods: Collection[BlockMethod],
        *,
        scales: Mapping[str, Floats] | None = None,
    ) -> GuidedBlocks:
        """Returns the weights by methods that use data, see ``guided_by_inputs``."""
        return guided_by_inputs(
            self.model,
            plan,
            lambda: self._split.some(_SEEN_BATCHES),
            progress,
            self._folder,
            methods=methods,
            scales=scales,
            threads=self._threads,
        )

    def in_sequence(self, choice: WeightOnlyChoice, progress: Progress) -> WeightOnlyChoice:
        """Returns the choice with its layers rounded once more, each for the inputs that the rounded ones give.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the model.
        """
        model = self.model if choice.model is None else choice.model
        feeds = self._split.some(_SEEN_BATCHES)
        weights = rounded_in_sequence(
            model, choice.plan, choice.weights, feeds, progress, self._folder, threads=self._threads
        )
        return replace(choice, weights=weights, method=choice.method.in_sequence or choice.method)

    def kept(self, weights: Mapping[str, BlockWeight]) -> Mapping[str, BlockWeight]:
        """Returns the same weights, kept outside of memory."""
        stored = StoredBlocks(self._folder)
        for name, weight in weights.items():
            stored.add(name, weight)
        return stored

    def graph(self, choice: WeightOnlyChoice, integer_layers: Collection[str]) -> ir.Model:
        """Returns the quantized model, whose products in ``integer_layers`` have activations of 8 bits."""
        levels = {name: INTEGER_LEVEL if name in integer_layers else EXACT_LEVEL for name in choice.plan.layers}
        model = (self.model if choice.model is None else choice.model).clone()
        form, unpacked = self._scheme.form, self._unpacks
        insert_blocks(model, choice.plan, choice.weights, form=form, levels=levels, unpacks=unpacked)
        # What onnxruntime would unpack, each time and in more memory.
        return RemoveBlocks(is_unpacked_product)(model).model

    def affords_sequence(self, choice: WeightOnlyChoice) -> bool:
        """Returns whether its layers can be rounded in sequence, in about the memory that rounding takes anyway."""
        return choice.method.in_sequence is not None and bool(choice.products) and not is_large(self._original)

    def sqnr_db(self, choice: WeightOnlyChoice, integer_layers: Collection[str] = ()) -> float:
        """Returns the SQNR of the worst output, in dB."""
        return self._evaluator.sqnr_db(self.graph(choice, integer_layers))

    def perplexity_rise(self, choice: WeightOnlyChoice, integer_layers: Collection[str] = ()) -> float:
        """Returns how much higher the perplexity is than the float model's, as a share.

        Raises:
            InputError: the model has no logits, or the data no tokens.
        """
        if self._text is None:
            with open_frugally(self._original, threads=self._threads) as session:
                self._text = HeldBackText(session, self._split.evaluation)
        with open_frugally(self.graph(choice, integer_layers), threads=self._threads) as session:
            return self._text.rise(session).value

    def activation_noise(self, choice: WeightOnlyChoice) -> dict[str, float]:
        """Returns the noise of 8-bit activations in each product, relative to it, see ``activation_noise``."""
        model = self.model if choice.model is None else choice.model
        feeds = self._split.some(_NOISE_BATCHES)
        return activation_noise(model, choice.plan, feeds, threads=self._threads)

    def times(
        self, choice: WeightOnlyChoice, forms: Sequence[Collection[str]], feed: Feed, progress: Progress
    ) -> tuple[Times, ...]:
        """Returns the times of the float model, and of the quantized one with each form's integer layers, in turns.

        A float model that is too large to be copied by onnxruntime is not timed; exact products stand for it.
        """
        floats = self.graph(choice, ()) if is_large(self._original) else self._original
        models = [floats, *(self.graph(choice, layers) for layers in forms)]
        with progress.task("timing in turns", ROUNDS) as advance:
            return times_in_turns(models, feed, advance, threads=self._threads)

    def run_float(self, feed: Feed) -> None:
        """Runs the float model on one batch.

        Raises:
            RuntimeRefusedError: it does not run on that.
        """
        with open_frugally(self._original, threads=self._threads) as session:
            session.run(feed)

    def kernel_times(self, choice: WeightOnlyChoice, integer_layers: Collection[str], feed: Feed) -> dict[str, float]:
        """Returns the seconds of each kernel in one run, by the node's name."""
        (times,) = kernel_times([self.graph(choice, integer_layers)], feed, threads=self._threads)
        return {name: time.seconds for name, time in times.items()}
