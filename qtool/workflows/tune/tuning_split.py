"""Splits calibration samples into those for tuning and those for evaluation, spread over the data.

The two do not overlap: layers fitted to a few samples do better on these than on any other. Silero's voice detector
reached 40.7 dB on the samples its weights were fitted on, and 36.3 dB on others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from qtool.backends.execution import Execution
from qtool.calib.specs import Feed, batch_length
from qtool.graph.specs import model_specs
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.tune.sample_selection import NOTHING_CHOSEN, ChosenSamples, spread_batches


class TuningSplit:
    """Provides calibration samples, without those held out to check the result.

    Attributes:
        evaluation: the batches that results are compared on, held in memory; empty where none are compared.
    """

    def __init__(
        self,
        original: ir.Model,
        samples: CheckSamples,
        *,
        evaluation_samples: int = 0,
        held_back: ChosenSamples = NOTHING_CHOSEN,
    ) -> None:
        """Takes the inputs and outputs of ``original``, which every form of the model shares.

        Args:
            original: the float model.
            samples: the data.
            evaluation_samples: how many samples to evaluate on; at most half of all, so that there are others.
            held_back: samples that are used for neither.
        """
        self._samples = samples
        self._held_back = frozenset(held_back.batches)
        self._inputs, self._outputs = model_specs(original)
        available = _less(samples.data.available(samples.dataset), len(held_back.rows))
        self._batches = _less(
            samples.data.batches(samples.dataset, self._inputs, self._outputs), len(held_back.batches)
        )
        evaluation_samples = samples.memory.evaluation_samples(evaluation_samples) if evaluation_samples else 0
        most = evaluation_samples if available is None else min(evaluation_samples, max(available // 2, 1))
        chosen = NOTHING_CHOSEN
        if evaluation_samples:
            chosen = spread_batches(self._every(), samples=most, available=available)
        self.evaluation: tuple[Feed, ...] = chosen.feeds
        self._evaluation = frozenset(chosen.batches)
        self._total = available
        self._available = _less(available, len(chosen.rows))

    def with_room(self, original: ir.Model, execution: Execution, *, threads: int = 0) -> tuple[Feed, ...]:
        """Returns some of the evaluation batches, evenly spread, for which outputs of ``original`` fit into memory.

        It takes a run to know how large they are: shapes behind operators of other domains are not known before.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
        """
        feeds = self.evaluation
        rows = max(batch_length(feeds[0]), 1)
        with execution.open_float(original, threads=threads) as session:
            made = sum(value.nbytes for value in session.run(feeds[0]).values())
        memory = replace(self._samples.memory, output_bytes=max(made // rows, 1))
        most = memory.evaluation_samples(sum(map(batch_length, feeds)))
        count = min(max(most // rows, 1), len(feeds))
        return tuple(feeds[number * len(feeds) // count] for number in range(count))

    def held(self, wanted: int, *, graphs: int = 1) -> int:
        """Returns for how many samples the tensors at a cut may be held, see ``ActivationMemory.held_samples``."""
        return self._samples.memory.held_samples(wanted, graphs=graphs)

    def some(self, wanted: int) -> Iterator[Feed]:
        """Yields ``wanted`` tuning batches, evenly spread where their number is known."""
        step = 1 if self._batches is None else max((self._batches - len(self._evaluation)) // wanted, 1)
        given = 0
        for number, feed in enumerate(self._others()):
            if number % step == 0:
                yield feed
                given += 1
                if given == wanted:
                    return

    def some_held(self, wanted: int, *, least: int) -> Iterator[Feed]:
        """Yields ``wanted`` batches as ``some`` does, at least ``least`` samples, as far as memory allows."""
        rows = self._samples.data.rows(self._inputs, self._outputs)
        batches = max(wanted, -(-least // rows))
        return self.some(max(self.held(batches * rows) // rows, 1))

    def all_tuning(self) -> Iterator[Feed]:
        """Yields every tuning batch, in order."""
        return self._others()

    def spread(self, count: int) -> tuple[Feed, ...]:
        """Returns tuning batches with about ``count`` samples in all, held in memory."""
        return spread_batches(self._others(), samples=count, available=self._available).feeds

    def spread_over_all(self, count: int) -> tuple[Feed, ...]:
        """Returns batches with about ``count`` samples in all, evaluation batches included, held in memory."""
        return spread_batches(self._every(), samples=count, available=self._total).feeds

    def _every(self) -> Iterator[Feed]:
        samples = self._samples
        used = samples.holdout.used(samples.data.feeds(samples.dataset, self._inputs, self._outputs))
        return (feed for number, feed in enumerate(used) if number not in self._held_back)

    def _others(self) -> Iterator[Feed]:
        """Yields the tuning batches; the evaluation batches where there are no others."""
        found = False
        for number, feed in enumerate(self._every()):
            if number not in self._evaluation:
                found = True
                yield feed
        if not found:
            yield from self.evaluation


def _less(count: int | None, taken: int) -> int | None:
    """Returns what is left of a count that may be unknown, at least 1."""
    return None if count is None else max(count - taken, 1)
