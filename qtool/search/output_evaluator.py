"""Evaluates quantized models by their outputs, compared with the float model's on a few samples."""

from __future__ import annotations

import hashlib
import math
import pickle
import time
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.execution import AS_IT_IS, Execution, Form, OnnxruntimeExecution, as_it_is
from qtool.calib.datasets.data_shard import Seen
from qtool.calib.specs import Array, Feed, batch_length
from qtool.errors import InputError
from qtool.graph.decoder_caches import cache_outputs
from qtool.metrics.accuracy import AccuracyMeter
from qtool.metrics.fidelity import FidelityMeter, OutputFidelity

# Float kernels of two runtimes differ by rounding, which is far less than this.
FLOATS_ALIKE_DB = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The accuracy of a quantized model relative to the float model.

    Attributes:
        sqnr_db: as ``worst_sqnr_db`` defines it.
        agreement: as ``worst_agreement`` defines it.
        top1_drop: top-1 accuracy that the float model has and this one has not, as a share of the samples, negative
            where this one is better; None without labels.
    """

    sqnr_db: float
    agreement: float | None
    top1_drop: float | None


class OutputEvaluator:
    """Holds the float model's outputs for some samples; keeps no intermediate tensors.

    Attributes:
        samples: how many samples it evaluates on.
        seconds: how long the float model took for them.
        feeds: these samples, in batches.
        threads: threads inside an operator; 0 is one per core.
    """

    def __init__(
        self,
        original: ir.Model,
        feeds: Sequence[Feed],
        *,
        labels: Array | None = None,
        view: Form = as_it_is,
        execution: Execution = AS_IT_IS,
        threads: int = 0,
    ) -> None:
        """Runs the float model once.

        Args:
            original: the float model.
            feeds: batches of samples, held in memory.
            labels: one class index per sample, in the order of the samples.
            view: which outputs to look at in place of each model's own.
            execution: how models are run.
            threads: threads inside an operator; 0 is one per core.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            InputError: there are no samples, or the labels do not fit the outputs.
        """
        if not feeds:
            raise InputError("there are no samples to evaluate on", fix="give data with at least one sample")
        self.feeds = tuple(feeds)
        self.threads = threads
        self._view = view
        self._execution = execution
        with execution.open_float(view(original), threads=threads) as session:
            start = time.monotonic()
            caches = cache_outputs(original)
            self._expected = tuple(_without(session.run(feed), caches) for feed in self.feeds)
            self.seconds = time.monotonic() - start
        self.samples = sum(map(batch_length, self.feeds))
        self._labels = labels
        self._scores = None if labels is None else _scores_output(self._expected[0])
        meter = self._accuracy()
        for outputs in self._expected:
            self._add(outputs, meter)
        self._float_top1 = None if meter is None else meter.result().top1

    def assess(self, model: ir.Model) -> Assessment:
        """Measures all figures in one run of ``model``, which is not modified.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            InputError: the model lacks an output.
        """
        meter, accuracy = FidelityMeter(), self._accuracy()
        with self._execution.open(self._view(model), threads=self.threads) as session:
            for feed, expected in zip(self.feeds, self._expected, strict=True):
                given = session.run(feed)
                meter.add(expected, given)
                self._add(given, accuracy)
        outputs = meter.results()
        top1 = None if accuracy is None else accuracy.result().top1
        return Assessment(
            sqnr_db=worst_sqnr_db(outputs),
            agreement=worst_agreement(outputs),
            top1_drop=None if top1 is None or self._float_top1 is None else self._float_top1 - top1,
        )

    def fidelity(self, model: ir.Model) -> tuple[OutputFidelity, ...]:
        """Compares every output of ``model``, which is not modified, with the float model's.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            InputError: the model lacks an output.
        """
        meter = FidelityMeter()
        with self._execution.open(self._view(model), threads=self.threads) as session:
            for feed, expected in zip(self.feeds, self._expected, strict=True):
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

    @property
    def may_be_cut(self) -> bool:
        """Whether a part of a graph runs as it does in the whole: in the runtime that runs parts of float graphs."""
        return isinstance(self._execution, OnnxruntimeExecution)

    def viewed(self, model: ir.Model) -> ir.Model:
        """Returns ``model`` with the outputs that are looked at."""
        return self._view(model)

    def behind(self, held: Sequence[Feed], part: ir.Model) -> OutputEvaluator:
        """Returns one that compares the same outputs, as far as ``part`` has them, from other tensors on.

        Args:
            held: float tensors inside the graph, for each of the batches.
            part: what stands behind them, with the outputs that are looked at.
        """
        names = {value.name for value in part.graph.inputs}
        other = copy(self)
        other.feeds = tuple({name: array for name, array in batch.items() if name in names} for batch in held)
        outputs = {value.name for value in part.graph.outputs}
        other._expected = tuple(_without(one, one.keys() - outputs) for one in self._expected)
        other._view = as_it_is
        return other

    def fingerprint(self) -> str:
        """Returns a hash, in hex, of all that its figures depend on besides the quantized models."""
        seen = Seen()
        for number, (feed, expected) in enumerate(zip(self.feeds, self._expected, strict=True)):
            seen.add(2 * number, feed)
            seen.add(2 * number + 1, expected)
        way = pickle.dumps((self._view, self._execution, self.threads, self._labels))
        return f"{seen} {hashlib.sha256(way).hexdigest()}"

    def _accuracy(self) -> AccuracyMeter | None:
        return None if self._labels is None else AccuracyMeter(self._labels)

    def _add(self, outputs: Feed, meter: AccuracyMeter | None) -> None:
        if meter is not None and self._scores is not None:
            meter.add(outputs[self._scores])


def _without(outputs: Feed, names: Collection[str]) -> dict[str, Array]:
    return {name: value for name, value in outputs.items() if name not in names}


def worst_sqnr_db(outputs: Sequence[OutputFidelity]) -> float:
    """Returns the SQNR of the worst output in dB: infinite when all are the same, minus infinite when one is unusable.

    In an integer output every value that differs counts as noise as strong as the signal:
    −10·log10(share of values that differ).
    """
    return min((_output_db(output) for output in outputs), default=math.inf)


def worst_agreement(outputs: Sequence[OutputFidelity]) -> float | None:
    """Returns the lowest top-1 agreement of the outputs that have classes, 0 to 1; None where none has."""
    shares = [output.top1_agreement for output in outputs if output.top1_agreement is not None]
    return min(shares, default=None)


def floats_differ(sqnr_db: float, runtime: str) -> str:
    """Returns one line about a float model whose outputs in ``runtime`` are not those in onnxruntime."""
    return (
        f"the float model itself has other outputs in {runtime} than in onnxruntime, {sqnr_db:.1f} dB apart: quantized "
        f"models are compared with it in the same runtime"
    )


def _output_db(output: OutputFidelity) -> float:
    if output.non_finite:
        return -math.inf
    if output.sqnr_db is not None:
        return output.sqnr_db
    if output.equal_share is None or output.equal_share == 1.0:
        return math.inf
    return -10.0 * math.log10(1.0 - output.equal_share)


def _scores_output(outputs: Feed) -> str:
    """Returns the first output that looks like one score per class."""
    for name, value in outputs.items():
        if value.ndim == 2 and value.shape[1] >= 2 and value.dtype.kind == "f":
            return name
    raise InputError(
        "there are labels, but the model has no float output of the shape (samples, classes)",
        fix="use --min-sqnr instead of --max-drop",
    )
