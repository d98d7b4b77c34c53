"""Compares two quantized models on samples that no search has tuned on, and tells whether one is better beyond chance.

Samples differ far more from each other than two good quantizations of a model do. Both models therefore see the same
samples, and the difference of the noise in each counts: its mean over the samples comes with a confidence interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.backends.execution import Execution
from qtool.calib.specs import Array, Feed, samples_in
from qtool.graph.decoder_caches import cache_outputs
from qtool.llm.mean_interval import mean_interval
from qtool.metrics.fidelity import FidelityMeter
from qtool.search.logits_view import with_logits_of_outputs
from qtool.search.output_evaluator import worst_sqnr_db

# Noise below and above this share of the signal is not told apart: a sample without any would outweigh all others.
_LEAST_NOISE, _MOST_NOISE = 1e-8, 1e4
_FEWEST_SAMPLES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What samples that were held back say about one change of a quantized model.

    Attributes:
        change: its name.
        gain_db: by how much it lowers the noise of a sample, in dB, on average.
        low_db: lower end of the 99 % confidence interval of ``gain_db``.
        high_db: upper end of it.
        before_db: SQNR of the worst output in dB without the change, over all these samples.
        after_db: the same with it.
        samples: how many samples were held back.
        kept: whether the change was kept.
    """

    change: str
    gain_db: float
    low_db: float
    high_db: float
    before_db: float
    after_db: float
    samples: int
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBackNoise:
    """The noise of one model on the samples held back.

    Attributes:
        shares: of the worst output, noise over signal of each sample, float64, (samples,).
        logits_db: SQNR of the worst output in dB, with logits in place of the outputs of a final Sigmoid or Softmax.
        outputs_db: SQNR of the worst output in dB.
    """

    shares: npt.NDArray[np.float64]
    logits_db: float
    outputs_db: float

    def evidence(self, change: str, after: HeldBackNoise) -> Evidence:
        """Returns what speaks for a change from this model to the one with the noise ``after``.

        It is to be kept where the whole confidence interval of the gain lies above 0 and no SQNR over all samples
        falls: a mean of decibels does not show the few samples that a change ruins.
        """
        gains = 10.0 * (np.log10(self.shares) - np.log10(after.shares))
        gain = mean_interval(gains, np.ones(len(gains)))
        harmless = after.logits_db >= self.logits_db and after.outputs_db >= self.outputs_db
        return Evidence(
            change=change,
            gain_db=gain.value,
            low_db=gain.low,
            high_db=gain.high,
            before_db=self.outputs_db,
            after_db=after.outputs_db,
            samples=len(gains),
            kept=len(gains) >= _FEWEST_SAMPLES and gain.low > 0.0 and harmless,
        )


class HeldBackSamples:
    """Holds the float model's outputs for the samples held back."""

    def __init__(self, original: ir.Model, feeds: Sequence[Feed], *, execution: Execution, threads: int = 0) -> None:
        """Runs the float model once.

        Args:
            original: the float model.
            feeds: batches of samples, at least one, held in memory.
            execution: how models are run.
            threads: threads inside an operator; 0 is one per core.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
        """
        self._feeds = tuple(feeds)
        self._execution = execution
        self._threads = threads
        opened, gates = with_logits_of_outputs(original)
        caches = cache_outputs(original)
        self._outputs = [value.name or "" for value in original.graph.outputs if value.name not in caches]
        self._logits = [gates[name].before if name in gates else name for name in self._outputs]
        with execution.open_float(opened, threads=threads) as session:
            self._expected = tuple(self._wanted(session.run(feed)) for feed in self._feeds)
        rows = [samples_in(feed) for feed in self._feeds]
        # Outputs that samples of a batch share make the batch one sample.
        self._parts = tuple(
            count if all(array.shape[:1] == (count,) for array in expected.values()) else 1
            for count, expected in zip(rows, self._expected, strict=True)
        )
        self._signals = {name: self._signal(name) for name in self._logits}

    def noise(self, model: ir.Model) -> HeldBackNoise:
        """Returns the noise of ``model``, which is not modified.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            InputError: the model lacks an output.
        """
        logits, outputs = FidelityMeter(), FidelityMeter()
        shares = []
        with self._execution.open(with_logits_of_outputs(model)[0], threads=self._threads) as session:
            for feed, expected, parts in zip(self._feeds, self._expected, self._parts, strict=True):
                given = session.run(feed)
                logits.add({name: expected[name] for name in self._logits}, given)
                outputs.add({name: expected[name] for name in self._outputs}, given)
                each = [self._shares(name, expected[name], given[name], parts) for name in self._logits]
                shares.append(np.max(each, axis=0))
        return HeldBackNoise(
            shares=np.clip(np.concatenate(shares), _LEAST_NOISE, _MOST_NOISE),
            logits_db=worst_sqnr_db(logits.results()),
            outputs_db=worst_sqnr_db(outputs.results()),
        )

    def _wanted(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: outputs[name] for name in (*self._outputs, *self._logits)}

    def _signal(self, name: str) -> float:
        """Returns the mean signal of a sample in an output."""
        arrays = [expected[name] for expected in self._expected if _is_float(expected[name])]
        total = sum(float(np.square(array[np.isfinite(array)], dtype=np.float64).sum()) for array in arrays)
        return total / sum(self._parts)

    def _shares(self, name: str, expected: Array, given: Array, parts: int) -> npt.NDArray[np.float64]:
        """Returns noise over signal of each sample, (parts,); values that are not floats are alike or not.

        The logits of a quantized graph may have lost an axis of length one, or two of their axes may be one there.
        """
        if expected.size != given.size or not expected.size:
            return np.full(parts, 1.0 if expected.size != given.size else 0.0)
        wanted, found = expected.reshape(parts, -1), given.reshape(parts, -1)
        if not _is_float(expected):
            return np.asarray(np.mean(wanted != found, axis=1))
        with np.errstate(invalid="ignore"):
            error = np.square(np.subtract(wanted, found, dtype=np.float64))
        error[(wanted == found) | (np.isnan(wanted) & np.isnan(found))] = 0.0
        noise = np.nan_to_num(error.sum(axis=1), nan=math.inf)
        return np.asarray(noise / max(self._signals[name], np.finfo(np.float64).tiny))


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"
