"""Judges quantized models by their outputs, beside those of the float model on a few samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from calib.specs import Feed
from qtool.errors import InputError
from qtool.metrics.fidelity import FidelityMeter, OutputFidelity
from qtool.runtime.graphs import open_graph


class OutputJudge:
    """Knows what the float model gives out for some samples; of its insides it keeps nothing.

    Attributes:
        samples: how many samples it judges by.
    """

    def __init__(self, original: ir.Model, feeds: Sequence[Feed], *, threads: int = 0) -> None:
        """Runs the float model once.

        Args:
            original: the float model.
            feeds: batches of samples, held as long as the judge lives.
            threads: threads inside an operator; 0 is one a core.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            InputError: there are no samples.
        """
        if not feeds:
            raise InputError("there are no samples to judge by", fix="give data with at least one sample")
        self._feeds = tuple(feeds)
        self._threads = threads
        with open_graph(original, threads=threads) as session:
            self._expected = tuple(session.run(feed) for feed in self._feeds)
        self.samples = sum(_rows(feed) for feed in self._feeds)

    def fidelity(self, model: ir.Model) -> tuple[OutputFidelity, ...]:
        """Compares every output of ``model``, which is left as it is, with the float model's.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            InputError: the model lacks an output.
        """
        meter = FidelityMeter()
        with open_graph(model, threads=self._threads) as session:
            for feed, expected in zip(self._feeds, self._expected, strict=True):
                meter.add(expected, session.run(feed))
        return meter.results()

    def sqnr_db(self, model: ir.Model) -> float:
        """Returns the signal-to-quantization-noise ratio of the worst output, in dB, as ``worst_sqnr_db`` defines it.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
        """
        return worst_sqnr_db(self.fidelity(model))

    def agreement(self, model: ir.Model) -> float | None:
        """Returns the share of samples, 0 to 1, with the same top-1 class; None where no output has classes.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
        """
        return worst_agreement(self.fidelity(model))


def worst_sqnr_db(outputs: Sequence[OutputFidelity]) -> float:
    """Returns the SQNR of the worst output in dB: infinite when all are the same, minus infinite when one is unusable.

    An output of integers has no noise but values that differ; each counts as noise as strong as the signal:
    −10·log10(share of values that differ).
    """
    return min((_output_db(output) for output in outputs), default=math.inf)


def worst_agreement(outputs: Sequence[OutputFidelity]) -> float | None:
    """Returns the lowest top-1 agreement of the outputs that have classes, 0 to 1; None where none has."""
    shares = [output.top1_agreement for output in outputs if output.top1_agreement is not None]
    return min(shares, default=None)


def _output_db(output: OutputFidelity) -> float:
    if output.non_finite or output.unmatched_batches:
        return -math.inf
    if output.sqnr_db is not None:
        return output.sqnr_db
    if output.equal_share is None or output.equal_share == 1.0:
        return math.inf
    return -10.0 * math.log10(1.0 - output.equal_share)


def _rows(feed: Feed) -> int:
    first = next(iter(feed.values()))
    return int(first.shape[0]) if first.ndim else 1
