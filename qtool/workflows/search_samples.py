"""The calibration samples that a search looks at: a few, from all over the data."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from calib.specs import Feed
from qtool.workflows.calibrate import model_specs
from qtool.workflows.check_result import CheckSamples
from qtool.workflows.judge_samples import ChosenSamples, spread_batches


class SearchSamples:
    """Hands out calibration samples, none of those that were held back to judge the result."""

    def __init__(self, original: ir.Model, samples: CheckSamples) -> None:
        """Takes the inputs and outputs of ``original``, which every form of the model has too."""
        self._samples = samples
        self._inputs, self._outputs = model_specs(original)
        self._batches = samples.data.batches(samples.dataset, self._inputs, self._outputs)

    def feeds(self) -> Iterator[Feed]:
        """Yields every batch."""
        samples = self._samples
        return samples.hold_back.used(samples.data.feeds(samples.dataset, self._inputs, self._outputs))

    def some(self, wanted: int) -> Iterator[Feed]:
        """Yields ``wanted`` batches, evenly spread where their number is known."""
        step = 1 if self._batches is None else max(self._batches // wanted, 1)
        given = 0
        for number, feed in enumerate(self.feeds()):
            if number % step == 0:
                yield feed
                given += 1
                if given == wanted:
                    return

    def spread(self, count: int) -> ChosenSamples:
        """Returns batches with about ``count`` samples in all, held in memory."""
        return spread_batches(
            self.feeds(), samples=count, available=self._samples.data.available(self._samples.dataset)
        )
