"""Noise in a model's outputs after a change, summed over batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qtool.calib.specs import Array
from qtool.metrics.unlike_shapes import common_shape, laid_out

# So many values are widened to float64 at once.
_CHUNK_VALUES = 1 << 20


class NoiseMeter:
    """Adds up signal and noise of every float output."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}

    @staticmethod
    def of(sums: Mapping[str, Sequence[float]]) -> NoiseMeter:
        """Returns one that goes on from the ``sums`` of another."""
        meter = NoiseMeter()
        for name, (signal, noise) in sums.items():
            meter._signal[name], meter._noise[name] = signal, noise
        return meter

    @property
    def sums(self) -> Mapping[str, tuple[float, float]]:
        """Signal and noise of every float output so far."""
        return {name: (signal, self._noise[name]) for name, signal in self._signal.items()}

    def add(self, expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Adds the outputs for one batch; non-float outputs are skipped.

        Where shapes differ, missing values count as zeros.
        """
        for name, reference in expected.items():
            if reference.dtype.kind != "f":
                continue
            other = got[name]
            if reference.shape != other.shape:
                shape = common_shape(reference, other)
                reference, other = laid_out(reference, shape), laid_out(other, shape)
            left, right = reference.reshape(-1), other.reshape(-1)
            for first in range(0, left.size, _CHUNK_VALUES):
                self._add(name, left[first : first + _CHUNK_VALUES], right[first : first + _CHUNK_VALUES])

    def _add(self, name: str, expected: Array, got: Array) -> None:
        a, b = expected.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(a)
        self._signal[name] = self._signal.get(name, 0.0) + float(np.square(a[finite]).sum())
        noise = float(np.square(a[finite] - b[finite]).sum())
        self._noise[name] = self._noise.get(name, 0.0) + noise

    def worst(self) -> float:
        """Returns noise over signal of the worst output; 10^(-SQNR/10) with the SQNR in dB."""
        ratios = [
            noise / self._signal[name] if self._signal[name] > 0 else (0.0 if noise == 0 else np.inf)
            for name, noise in self._noise.items()
        ]
        worst = max(ratios, default=0.0)
        return float(np.inf) if np.isnan(worst) else worst
