"""Per-layer fidelity: how close the intermediate tensors of a quantized model are to the float model's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array

# Values times a factor of their channel stand for a quantizer that moved scales between layers, not for noise.
_RESCALED_GAIN_DB = 10.0
_IMAGE_AXES = 4
_BINS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFidelity:
    """Compares one intermediate tensor of both models.

    Attributes:
        tensor: its name.
        operator: the operator that computes it in the float model.
        quantized: whether it is stored as integers.
        sqnr_db: signal-to-quantization-noise ratio of its values, as of outputs; NaN where they cannot be compared.
        rescaled: whether the quantized model holds it times a factor a channel, which is undone for the comparison.
    """

    tensor: str
    operator: str
    quantized: bool
    sqnr_db: float
    rescaled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHistogram:
    """The distribution of a tensor's float values, and its quantization range.

    Attributes:
        tensor: its name.
        low: where the first bin begins.
        high: where the last bin ends; all are equally wide.
        counts: values in each bin.
        range_low: the lowest value that the integers represent.
        range_high: the highest one.
        clipped_share: share of values, 0 to 1, that lie further outside of it than rounding moves them: half a step.
    """

    tensor: str
    low: float
    high: float
    counts: tuple[int, ...]
    range_low: float
    range_high: float
    clipped_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The range that the integers of a tensor represent.

    Attributes:
        low: the value of the lowest integer.
        high: the value of the highest integer.
        step: the scale: the difference between neighbouring integers.
    """

    low: float
    high: float
    step: float


class LayerMeter:
    """Adds up signal and noise of one tensor, whole and by channel."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._signal = self._noise = 0.0
        self._channels: dict[str, npt.NDArray[np.float64]] | None = {}
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, expected: Array, got: Array) -> None:
        """Adds the values of both models for the same samples; other shapes make the result NaN."""
        if expected.shape != got.shape or expected.dtype.kind != "f" or got.dtype.kind != "f":
            self._noise = math.nan
            return
        if expected.size == 0:
            return
        a, b = expected.astype(np.float64), got.astype(np.float64)
        self.minimum, self.maximum = min(self.minimum, float(a.min())), max(self.maximum, float(a.max()))
        self._signal += float(np.square(a).sum())
        self._noise += float(np.square(a - b).sum())
        self._add_channels(a, b)

    def result(self, tensor: str, operator: str, *, quantized: bool) -> LayerFidelity:
        """Returns what was found so far."""
        sqnr_db = _decibels(self._signal, self._noise)
        fitted_db = self._fitted_db()
        rescaled = fitted_db is not None and fitted_db > sqnr_db + _RESCALED_GAIN_DB
        return LayerFidelity(
            tensor=tensor,
            operator=operator,
            quantized=quantized,
            sqnr_db=fitted_db if fitted_db is not None and rescaled else sqnr_db,
            rescaled=rescaled,
        )

    def _add_channels(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> None:
        if self._channels is None or a.ndim < 2:
            self._channels = None
            return
        axis = 1 if a.ndim == _IMAGE_AXES else a.ndim - 1
        others = tuple(place for place in range(a.ndim) if place != axis)
        for name, product in (("aa", a * a), ("ab", a * b), ("bb", b * b)):
            sums = product.sum(axis=others)
            before = self._channels.get(name)
            if before is not None and before.shape != sums.shape:
                self._channels = None
                return
            self._channels[name] = sums if before is None else before + sums

    def _fitted_db(self) -> float | None:
        """Returns the SQNR once every channel is times the factor that fits best: Σab/Σb² in the least squares."""
        if not self._channels:
            return None
        aa, ab, bb = (self._channels[name] for name in ("aa", "ab", "bb"))
        explained = np.divide(ab * ab, bb, out=np.zeros_like(bb), where=bb > 0)
        return _decibels(float(aa.sum()), max(0.0, float((aa - explained).sum())))


class HistogramMeter:
    """Counts the values of one tensor in bins whose range is known beforehand."""

    def __init__(self, span: Span, *, minimum: float, maximum: float) -> None:
        """Sets bins that cover both the values and the quantization range."""
        self._span = span
        self._low, self._high = min(minimum, span.low), max(maximum, span.high)
        self._counts = np.zeros(_BINS, np.int64)
        self._clipped = 0

    def add(self, values: Array) -> None:
        """Adds values."""
        self._counts += np.histogram(values, bins=_BINS, range=(self._low, self._high))[0]
        room = self._span.step / 2
        self._clipped += int(np.count_nonzero((values < self._span.low - room) | (values > self._span.high + room)))

    def result(self, tensor: str) -> TensorHistogram:
        """Returns what was found so far."""
        return TensorHistogram(
            tensor=tensor,
            low=self._low,
            high=self._high,
            counts=tuple(int(count) for count in self._counts),
            range_low=self._span.low,
            range_high=self._span.high,
            clipped_share=self._clipped / max(1, int(self._counts.sum())),
        )


def _decibels(signal: float, noise: float) -> float:
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf
