"""What held-out samples predict for other data: an interval of an output's SQNR, and how reliable it is.

After a Softmax or Sigmoid most samples of a trained classifier are saturated, 0 or 1 to many digits, whatever the
noise. A handful of them predicts 50 dB; the first ambiguous sample has 25. So the noise of the logits is also applied
where samples are ambiguous, which gives a lower bound for other data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array

# Gates whose ends hide noise.
SATURATING = ("Sigmoid", "Softmax")
# Resamples of the bootstrap (Efron 1979), and the ends of its interval in percent.
_RESAMPLES = 1000
_ENDS = (2.5, 97.5)
# Undecided is what lies no further from the border, before the gate, and has less than this share behind it.
_UNDECIDED = 1.0
_DECIDED_SHARE = 0.9
# Fewer undecided samples than this, in number and as a share, tell nothing about others.
_FEW, _FEW_SHARE = 3, 0.05
_WIDE_DB = 6.0
# So many values are widened to float64 at once.
_CHUNK_VALUES = 1 << 20
_MOST_CLASSES = 1 << 14

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The expected fidelity of one output on data like the samples.

    Attributes:
        low_db: lower end of the SQNR, in dB: that of the bootstrap's 95 % interval, or of samples that are all
            undecided, where that is lower.
        high_db: upper end of the bootstrap's interval.
        samples: how many samples there were.
        undecided: how many of them the gate leaves undecided; None without a gate that saturates.
        gate: that gate's operator; None for none.
    """

    low_db: float
    high_db: float
    samples: int
    undecided: int | None
    gate: str | None

    @property
    def says_little(self) -> bool:
        """Whether nearly all samples are decided and others may come out much worse."""
        if self.undecided is None or self.high_db - self.low_db < _WIDE_DB:
            return False
        return self.undecided < max(_FEW, _FEW_SHARE * self.samples)


class OutlookMeter:
    """Collects one output sample by sample; holds a few numbers of each."""

    def __init__(self, gate: str | None = None) -> None:
        """Takes the operator that the output comes from, where it saturates."""
        self._gate = gate
        self._signal: list[Floats] = []
        self._noise: list[Floats] = []
        self._undecided_signal: list[Floats] = []
        self._undecided_noise: list[Floats] = []
        self._undecided = 0

    def add(self, expected: Array, got: Array, samples: int, before: tuple[Array, Array] | None = None) -> None:
        """Adds one batch of the float model's and the quantized model's output, and what the gate read in each."""
        if expected.dtype.kind != "f" or expected.shape != got.shape or not expected.size:
            return
        count = samples if expected.ndim and expected.shape[0] == samples else 1
        left, right = expected.reshape(count, -1), got.reshape(count, -1)
        signal, noise = np.zeros(count), np.zeros(count)
        columns = max(_CHUNK_VALUES // count, 1)
        for first in range(0, left.shape[1], columns):
            a, b = (x[:, first : first + columns].astype(np.float64) for x in (left, right))
            finite = np.isfinite(a) & np.isfinite(b)
            a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
            signal += np.square(a).sum(axis=1)
            noise += np.square(a - b).sum(axis=1)
        self._signal.append(signal)
        self._noise.append(noise)
        if self._gate is None:
            return
        whole = np.where(np.isfinite(left) & np.isfinite(right), left, 0.0).astype(np.float64)
        if before is None or not self._add_gate(whole, before):
            self._gate = None

    def result(self) -> Outlook | None:
        """Returns what was found; None where fewer than two samples or no noise came."""
        if not self._signal:
            return None
        signal, noise = np.concatenate(self._signal), np.concatenate(self._noise)
        if len(signal) < 2 or not noise.sum() or not signal.sum():
            return None
        # The same samples are drawn in every run.
        draws = np.random.default_rng(0).integers(0, len(signal), (_RESAMPLES, len(signal)))
        ratios = _decibels(signal[draws].sum(axis=1), noise[draws].sum(axis=1))
        # Draws of samples without signal, such as pages without text, say nothing.
        ratios = ratios[np.isfinite(ratios)]
        if not ratios.size:
            return None
        low, high = (float(end) for end in np.percentile(ratios, _ENDS))
        if self._gate is not None and (lost := float(np.concatenate(self._undecided_noise).sum())) > 0.0:
            kept = float(np.concatenate(self._undecided_signal).sum())
            low = min(low, float(_decibels(np.asarray(kept), np.asarray(lost))))
        return Outlook(
            low_db=low,
            high_db=high,
            samples=len(signal),
            undecided=None if self._gate is None else self._undecided,
            gate=self._gate,
        )

    def _add_gate(self, expected: Floats, before: tuple[Array, Array]) -> bool:
        """Adds what the gate read; returns False where that is not what the output comes from, row by row."""
        left, right = (x.astype(np.float64) for x in before)
        if left.size != expected.size or right.shape != left.shape or expected.shape[1] > _MOST_CLASSES:
            return False
        left, right = left.reshape(expected.shape), right.reshape(expected.shape)
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            return False
        if not np.allclose(self._opened(left), expected, rtol=1e-3, atol=1e-4):
            return False
        close = self._undecided_at(left)
        at_border = self._opened(close)
        self._undecided_signal.append(np.square(at_border).sum(axis=1))
        self._undecided_noise.append(np.square(self._opened(close + right - left) - at_border).sum(axis=1))
        certain = expected.max(axis=1) if self._gate == "Softmax" else np.maximum(expected, 1.0 - expected).min(axis=1)
        self._undecided += int(np.count_nonzero(certain < _DECIDED_SHARE))
        return True

    def _opened(self, rows: Floats) -> Floats:
        if self._gate == "Softmax":
            powers = np.exp(rows - rows.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * rows)))

    def _undecided_at(self, rows: Floats) -> Floats:
        """Returns the nearest values at which a Sigmoid, or a Softmax between its two best classes, is undecided."""
        if self._gate == "Sigmoid":
            clipped: Floats = np.clip(rows, -_UNDECIDED, _UNDECIDED)
            return clipped
        moved: Floats = rows - rows.max(axis=1, keepdims=True)
        if moved.shape[1] > 1:
            second = np.argpartition(moved, -2, axis=1)[:, -2]
            places = np.arange(len(moved))
            moved[places, second] = np.maximum(moved[places, second], -_UNDECIDED)
        return moved


def _decibels(signal: Floats, noise: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10.0 * (np.log10(signal) - np.log10(noise)))
