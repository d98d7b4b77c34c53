"""Chooses the method and the accuracy level of a weight-only quantization by the model's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.metrics.latency import paired_ratio
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.qdq.insert_blocks import insert_blocks
from qtool.schemes import WeightOnlyScheme
from qtool.search.block_rounding import guided_by_inputs, least_squares, rounded_to_nearest
from qtool.search.logits_view import with_logits
from qtool.search.output_evaluator import OutputEvaluator
from qtool.weights.block_choices import BlockMethod, WeightFormat
from qtool.weights.block_quantization import BlockWeight
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.weight_only_request import Attempt
from qtool.workflows.tune.time_plan import ROUNDS, times_in_turns
from qtool.workflows.tune.tuning_split import TuningSplit

# Float products, and products whose activations are rounded to 8 bits inside of the kernel.
EXACT_LEVEL, INTEGER_LEVEL = 0, 4
_EVALUATION_SAMPLES = 32
_SEEN_BATCHES = 32
# Integer products may cost so much, in dB, for the time that they save.
_MOST_LOSS_DB = 0.5
# From here on they are taken as well where float products would be slower than the float model.
_SOUND_DB = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyChoice:
    """The weights that were chosen.

    Attributes:
        weights: by name.
        method: what chose their integers.
        level: the accuracy level of the products.
        attempts: what was evaluated.
    """

    weights: Mapping[str, BlockWeight]
    method: BlockMethod
    level: int
    attempts: tuple[Attempt, ...]


def choose_weights(
    original: ir.Model,
    model: ir.Model,
    plan: WeightOnlyPlan,
    scheme: WeightOnlyScheme,
    samples: CheckSamples | None,
    progress: Progress,
    *,
    method: BlockMethod | None,
    level: int | None,
    timed_on: Feed | None,
    threads: int = 0,
) -> WeightOnlyChoice:
    """Returns the weights that come closest to the float model.

    Args:
        original: the float model.
        model: the same after ``prepare``; not modified.
        plan: what to quantize.
        scheme: how it is written.
        samples: the data; None to fit the weights alone.
        progress: receives the steps.
        method: what chooses the integers; None to compare all.
        level: the accuracy level; None to choose it by outputs and times.
        timed_on: a sample to time models on.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        InputError: a weight holds NaN or infinity.
        RuntimeRefusedError: onnxruntime does not load or run a model.
        CalibError: the data does not fit the model.
    """
    if samples is None:
        plain = method is BlockMethod.RTN
        return WeightOnlyChoice(
            weights=rounded_to_nearest(model, plan) if plain else least_squares(model, plan, progress),
            method=BlockMethod.RTN if plain else BlockMethod.MSE,
            level=level or EXACT_LEVEL,
            attempts=(),
        )
    split = TuningSplit(original, samples, evaluation_samples=_EVALUATION_SAMPLES)
    search = _Search(original, model, plan, scheme, split, threads)
    found = search.candidates(method, progress)
    if len(found) > 1 or level is None:
        with progress.task("evaluating methods", len(found)) as advance:
            for name, weights in found.items():
                search.evaluate(name, weights, EXACT_LEVEL if level is None else level)
                advance(1)
    best = max(found, key=lambda name: search.sqnr_db(name, default=0.0))
    chosen = EXACT_LEVEL if level is None else level
    if level is None and scheme.form is WeightFormat.NBITS and timed_on is not None:
        chosen = search.level(best, found[best], timed_on, progress)
    return WeightOnlyChoice(weights=found[best], method=best, level=chosen, attempts=tuple(search.attempts))


class _Search:
    """Evaluates forms of one model, and keeps what it found."""

    def __init__(
        self,
        original: ir.Model,
        model: ir.Model,
        plan: WeightOnlyPlan,
        scheme: WeightOnlyScheme,
        split: TuningSplit,
        threads: int,
    ) -> None:
        self._original = original
        self._model = model
        self._plan = plan
        self._scheme = scheme
        self._split = split
        self._threads = threads
        self._evaluator = OutputEvaluator(original, split.evaluation, view=with_logits, threads=threads)
        self.attempts: list[Attempt] = []

    def candidates(
        self, method: BlockMethod | None, progress: Progress
    ) -> dict[BlockMethod, Mapping[str, BlockWeight]]:
        """Returns the weights by each method in question."""
        found: dict[BlockMethod, Mapping[str, BlockWeight]] = {}
        if method in (None, BlockMethod.RTN):
            found[BlockMethod.RTN] = rounded_to_nearest(self._model, self._plan)
        if method is not BlockMethod.RTN:
            fitted, rounded = guided_by_inputs(
                self._model, self._plan, lambda: self._split.some(_SEEN_BATCHES), progress, threads=self._threads
            )
            guided = {BlockMethod.MSE: fitted, BlockMethod.GPTQ: rounded}
            found |= {name: weights for name, weights in guided.items() if method in (None, name)}
        return found

    def graph(self, weights: Mapping[str, BlockWeight], level: int) -> ir.Model:
        """Returns the quantized model."""
        levels = dict.fromkeys(self._plan.layers, level)
        return insert_blocks(self._model.clone(), self._plan, weights, form=self._scheme.form, levels=levels)

    def evaluate(self, method: BlockMethod, weights: Mapping[str, BlockWeight], level: int) -> float:
        """Measures one form at the outputs, and remembers it."""
        sqnr_db = self._evaluator.sqnr_db(self.graph(weights, level))
        self.attempts.append(Attempt(method=method, level=level, sqnr_db=sqnr_db))
        return sqnr_db

    def sqnr_db(self, method: BlockMethod, *, default: float) -> float:
        """Returns the best that a method reached."""
        return max((attempt.sqnr_db for attempt in self.attempts if attempt.method is method), default=default)

    def level(self, method: BlockMethod, weights: Mapping[str, BlockWeight], sample: Feed, progress: Progress) -> int:
        """Returns the accuracy level: integer products where they cost little, or float ones would be too slow."""
        exact = self.sqnr_db(method, default=0.0)
        found = self.evaluate(method, weights, INTEGER_LEVEL)
        levels = (EXACT_LEVEL, INTEGER_LEVEL)
        models = [self._original, *(self.graph(weights, level) for level in levels)]
        with progress.task("timing in turns", ROUNDS) as advance:
            floats, *times = times_in_turns(models, sample, advance, threads=self._threads)
        speed = {level: paired_ratio(floats, taken) for level, taken in zip(levels, times, strict=True)}
        self.attempts = [
            replace(attempt, speedup=speed[attempt.level].median) if attempt.method is method else attempt
            for attempt in self.attempts
        ]
        if paired_ratio(times[0], times[1]).low <= 1.0:
            return EXACT_LEVEL
        too_slow = speed[EXACT_LEVEL].high < 1.0 and found >= _SOUND_DB
        return INTEGER_LEVEL if found >= exact - _MOST_LOSS_DB or too_slow else EXACT_LEVEL
