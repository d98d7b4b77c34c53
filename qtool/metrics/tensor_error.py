"""Quantization error of one tensor, divided into clipping and rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array
from qtool.calib.statistics import TensorStatistics
from qtool.qdq.quantized_tensors import QuantizedTensor, spread

_BARS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a histogram.

    Attributes:
        low: its lower edge.
        high: its upper edge.
        share: of all values, 0 to 1.
        inside: whether it is within the quantization range.
    """

    low: float
    high: float
    share: float
    inside: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """The quantization error of one tensor over samples.

    Ratios are in dB, 10·log10(Σx²/Σ(x−y)²) over the values x and the quantized ones y; None where there is no error.

    Attributes:
        values: how many there were.
        minimum: the smallest.
        maximum: the largest.
        clipped_share: share of them, 0 to 1, that lie more than half a step outside of the integers' range; None for
            stored tensors, whose float values are not known.
        clipping_db: signal over the error of clipping.
        rounding_db: signal over the error of rounding the other values.
        sqnr_db: signal over the accumulated error of the quantized model up to this tensor, its own error included.
        used_share: share of the integers' range that the values span, 0 to 1.
        core_share: share of the integers' range that the middle 99.9 % of the values span, 0 to 1.
        histogram: of the values, over them and the integers' range.
    """

    values: int
    minimum: float
    maximum: float
    clipped_share: float | None
    clipping_db: float | None
    rounding_db: float | None
    sqnr_db: float | None
    used_share: float
    core_share: float
    histogram: tuple[Bar, ...]


class TensorErrorMeter:
    """Adds up the errors of one tensor over batches; memory does not grow with them."""

    def __init__(self, tensor: QuantizedTensor) -> None:
        """Starts with nothing seen of ``tensor``."""
        self._tensor = tensor
        self._seen = TensorStatistics()
        self._clipped = 0
        self._signal = self._clipping = self._rounding = self._total = 0.0

    def add(self, floats: Array, quantized: Array) -> None:
        """Adds the tensor of the float model and that of the quantized one for the same batch.

        Values that are not finite in one of them are left out.
        """
        both = np.isfinite(floats) & np.isfinite(quantized)
        if not floats.size or not both.any():
            return
        scale, zero = (spread(self._tensor, part, floats) for part in (self._tensor.scale, self._tensor.zero_point))
        wide = np.where(both, floats, 0).astype(np.float64)
        ends = (self._tensor.lowest, self._tensor.highest)
        low, high = ((end - zero.astype(np.float64)) * scale for end in ends)
        inside = np.clip(wide, low, high)
        zero = zero.astype(np.float64)
        own = (self._tensor.nearest(wide / scale + zero) - zero) * scale
        flat = wide[both].astype(np.float32)
        self._seen.add(flat, flat)
        self._clipped += int(np.count_nonzero(np.abs(wide - inside) > scale / 2))
        self._signal += _energy(wide)
        self._clipping += _energy(wide - inside)
        self._rounding += _energy(inside - own)
        self._total += _energy(np.where(both, wide - quantized, 0))

    def result(self) -> TensorError | None:
        """Returns what was found; None when no value came."""
        seen = self._seen
        if not seen.values:
            return None
        low, high = self._tensor.low, self._tensor.high
        width = max(high - low, np.finfo(np.float64).tiny)
        return TensorError(
            values=seen.values,
            minimum=seen.minimum,
            maximum=seen.maximum,
            clipped_share=self._clipped / seen.values,
            clipping_db=_decibels(self._signal, self._clipping),
            rounding_db=_decibels(self._signal, self._rounding),
            sqnr_db=_decibels(self._signal, self._total),
            used_share=min((min(seen.maximum, high) - max(seen.minimum, low)) / width, 1.0),
            core_share=min(_core_width(seen) / width, 1.0),
            histogram=bars(seen, low, high),
        )


def bars(seen: TensorStatistics, low: float, high: float) -> tuple[Bar, ...]:
    """Returns a coarse histogram over the values seen and the range from ``low`` to ``high``, in bars of one width."""
    begin, end = min(seen.minimum, low), max(seen.maximum, high)
    if not end > begin:
        return ()
    fine = seen.histogram()
    edges = np.linspace(begin, end, _BARS + 1)
    places = np.clip(np.searchsorted(edges, fine.centers, side="right") - 1, 0, _BARS - 1)
    counts = np.bincount(places, weights=fine.counts, minlength=_BARS)
    middles = (edges[:-1] + edges[1:]) / 2
    return tuple(
        Bar(low=float(a), high=float(b), share=float(count) / fine.total, inside=bool(low <= middle <= high))
        for a, b, count, middle in zip(edges[:-1], edges[1:], counts, middles, strict=True)
    )


def weight_error(tensor: QuantizedTensor) -> TensorError | None:
    """Returns what is known of a stored tensor from its integers alone; None for one that is computed.

    Its float values are not known: the rounding error is that of values spread evenly within a step, scale²/12 (Bennett
    1948, "Spectra of Quantized Signals").
    """
    integers, floats = tensor.stored(), tensor.floats()
    if integers is None or floats is None or not integers.size:
        return None
    seen = TensorStatistics()
    seen.add(floats, floats)
    steps = spread(tensor, tensor.scale, integers).astype(np.float64) * tensor.widths(integers)
    noise = np.broadcast_to(np.square(steps) / 12, integers.shape)
    rounding = _decibels(_energy(floats.astype(np.float64)), float(noise.sum()))
    width = max(tensor.high - tensor.low, np.finfo(np.float64).tiny)
    return TensorError(
        values=integers.size,
        minimum=seen.minimum,
        maximum=seen.maximum,
        clipped_share=None,
        clipping_db=None,
        rounding_db=rounding,
        sqnr_db=rounding,
        used_share=min((seen.maximum - seen.minimum) / width, 1.0),
        core_share=min(_core_width(seen) / width, 1.0),
        histogram=bars(seen, tensor.low, tensor.high),
    )


def _core_width(seen: TensorStatistics) -> float:
    """Returns the width of the range of the middle 99.9 % of the values."""
    histogram = seen.histogram()
    passed = np.cumsum(histogram.counts) / histogram.total
    first, last = np.searchsorted(passed, [0.0005, 0.9995])
    return float(histogram.high[min(last, passed.size - 1)] - histogram.low[first])


def _energy(values: npt.NDArray[np.float64]) -> float:
    return float(np.square(values).sum())


def _decibels(signal: float, noise: float) -> float | None:
    if noise == 0:
        return None
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf
