"""Judges trained graphs on evaluation samples, as the runtime computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from qtool.backends.execution import Execution
from qtool.calib.specs import Feed
from qtool.learn.distillation import Judgement
from qtool.learn.losses import Loss
from qtool.learn.tensors import tensor_of
from qtool.metrics.fidelity import FidelityMeter
from qtool.search.logits_view import with_logits
from qtool.search.output_evaluator import worst_sqnr_db


class Judge:
    """Holds the outputs of the float model on the evaluation samples."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        teacher: Callable[[Feed], Feed],
        losses: Mapping[str, Loss],
        execution: Execution,
        *,
        threads: int = 0,
    ) -> None:
        """Runs the float model once.

        Args:
            feeds: batches of samples, held in memory.
            teacher: returns the outputs of the float model, logits in the place of probabilities.
            losses: by output.
            execution: how graphs are run.
            threads: threads inside an operator; 0 is one per core.
        """
        self._feeds = tuple(feeds)
        self._expected = tuple(teacher(feed) for feed in self._feeds)
        self._losses = losses
        self._execution = execution
        self._threads = threads

    @torch.no_grad()
    def __call__(self, model: ir.Model) -> Judgement:
        """Returns the mean loss of a batch, and the SQNR of the worst output.

        Raises:
            RuntimeRefusedError: the runtime does not load or run the graph.
        """
        meter, found = FidelityMeter(), list[float]()
        with self._execution.open(with_logits(model), threads=self._threads) as session:
            for feed, expected in zip(self._feeds, self._expected, strict=True):
                given = session.run(feed)
                meter.add(expected, given)
                found.append(self._loss(given, expected))
        return Judgement(loss=float(np.mean(found)), sqnr_db=worst_sqnr_db(meter.results()))

    def _loss(self, given: Feed, expected: Feed) -> float:
        here = torch.device("cpu")
        return sum(
            float(loss(tensor_of(given[name], here), tensor_of(expected[name], here)))
            for name, loss in self._losses.items()
        )
