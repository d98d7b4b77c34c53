"""GPTAQ: fits a layer's integers to the float layer's outputs, given inputs with the noise of the layers before.

The layers before a layer are quantized already: it reads x' = x + d where the float layer reads x. The weights T that
minimize E |T x' - W x|^2 are W - W B H^-1 with H = E[x' x'^T] and B = E[d x'^T], by linear regression; they are rounded
by GPTQ under H (see ``gptq``), and the integers are then improved by coordinate descent. Sources: Y. Li et al., GPTAQ:
Efficient Finetuning-Free Quantization for Asymmetric Calibration (ICML 2025) for the asymmetric target; K. Behdin et
al., QuantEase (2023) for the coordinate descent.

A few thousand positions estimate a million moments poorly. Hence H and B are shrunk towards their diagonals, by the
amount that does best on held-out positions; with the diagonals alone, each input has one factor of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from qtool.weights.gptq import Curvature, Floats, PairLimit, gptq

Samples: TypeAlias = npt.NDArray[np.float32]
AnyFloat = TypeVar("AnyFloat", np.float32, np.float64)

# Candidates for the shrinkage towards the diagonals.
_SHRINKAGE = (1.0, 0.5, 0.2, 0.05)
# For rounding, where an error in H costs less.
_ROUNDING_SHRINKAGE = 0.1
_DAMPING = 0.01
_SWEEPS = 3
_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedMoments:
    """Second moments of the inputs of a layer with weights W that reads x' = x + d instead of x.

    The terms with d are small where d is, so float32 is precise enough.

    Attributes:
        hessian: H = E[x' x'^T], (groups, inputs, inputs).
        cross: W B = W E[d x'^T], (groups, outputs, inputs).
        cross_diagonal: the same with only the diagonal of B.
        input_noise: E |W d|^2, the noise from the layers before.
        signal: E |W x|^2.
    """

    hessian: Samples
    cross: Samples
    cross_diagonal: Samples
    input_noise: float
    signal: float

    @staticmethod
    def of(weight: Samples, given: Samples, error: Samples) -> PairedMoments:
        """Computes them from x' and d, (groups, inputs, positions), and W, (groups, outputs, inputs)."""
        count = np.float32(max(given.shape[2], 1))
        turned = given.transpose(0, 2, 1)
        through: Samples = weight @ error
        return PairedMoments(
            hessian=given @ turned / count,
            cross=through @ turned / count,
            cross_diagonal=weight * (np.einsum("gip,gip->gi", error, given) / count)[:, None, :],
            input_noise=_power(through) / float(count),
            signal=_power(weight @ (given - error)) / float(count),
        )

    def joined(self, other: PairedMoments, *, share: float) -> PairedMoments:
        """Returns the moments over both; ``share``, 0 to 1, is the weight of ``other``."""
        own, others = np.float32(1.0 - share), np.float32(share)
        return PairedMoments(
            hessian=own * self.hessian + others * other.hessian,
            cross=own * self.cross + others * other.cross,
            cross_diagonal=own * self.cross_diagonal + others * other.cross_diagonal,
            input_noise=(1.0 - share) * self.input_noise + share * other.input_noise,
            signal=(1.0 - share) * self.signal + share * other.signal,
        )

    def noise(self, change: Samples) -> float:
        """Returns E |T x' - W x|^2 for weights T = W + ``change``, (groups, outputs, inputs)."""
        slope = (change @ self.hessian + np.float32(2.0) * self.cross).reshape(-1)
        return float(slope.astype(np.float64) @ change.reshape(-1).astype(np.float64)) + self.input_noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The grid of a layer's weights, with its zero point at 0; float64.

    Attributes:
        size: the step of each output, (groups, outputs, 1).
        low: the lowest number of steps, (groups, outputs, 1).
        high: the highest one.
    """

    size: Floats
    low: Floats
    high: Floats


def best_fit(seen: PairedMoments, holdout: PairedMoments) -> float | None:
    """Returns the shrinkage whose fitted weights do best on held-out positions; None where none helps.

    Less shrinkage is tried as long as the error decreases.
    """
    best, least = None, holdout.input_noise
    for shrinkage in _SHRINKAGE:
        noise = holdout.noise(fitted_change(seen, shrinkage))
        if noise >= least:
            break
        best, least = shrinkage, noise
    return best


def fitted_change(moments: PairedMoments, shrinkage: float) -> Samples:
    """Returns T - W, (groups, outputs, inputs), for the weights T that fit best with that shrinkage."""
    cross = np.float32(1.0 - shrinkage) * moments.cross + np.float32(shrinkage) * moments.cross_diagonal
    if shrinkage == 1.0:
        diagonal = np.diagonal(moments.hessian, axis1=1, axis2=2)[:, None, :]
        change: Samples = -cross / (diagonal + _floor(moments.hessian))
    else:
        change = -np.linalg.solve(_damped(moments.hessian, shrinkage), cross.transpose(0, 2, 1)).transpose(0, 2, 1)
    return change


def rounded_steps(target: Floats, moments: PairedMoments, steps: Steps, pairs: PairLimit | None = None) -> Floats:
    """Returns whole numbers of steps for ``target``, (groups, outputs, inputs), with little E |(T' - T) x'|^2."""
    hessian = _damped(moments.hessian.astype(np.float64), _ROUNDING_SHRINKAGE)
    wanted = target / steps.size
    rounded = gptq(wanted, Curvature.of(hessian), steps.low[:, :, 0], steps.high[:, :, 0], pairs)
    return _descended(rounded, wanted, hessian, steps, pairs)


def _descended(start_from: Floats, wanted: Floats, curvature: Floats, steps: Steps, pairs: PairLimit | None) -> Floats:
    """Coordinate descent: moves one input's integers at a time to the minimum of the error, until none moves."""
    done = start_from.copy()
    slope = (done - wanted) @ curvature
    diagonal = np.diagonal(curvature, axis1=1, axis2=2)
    least, most = steps.low[:, :, 0], steps.high[:, :, 0]
    low, high = least, most
    count = done.shape[2]
    for _ in range(_SWEEPS):
        before = done.copy()
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            inner = slope[:, :, start:stop].copy()
            entry = done[:, :, start:stop].copy()
            for column in range(start, stop):
                here = done[:, :, column]
                if pairs is not None and (partner := pairs.partners[column]) != column:
                    lowest, highest = pairs.bounds(done[:, :, partner])
                    low, high = np.maximum(least, lowest), np.minimum(most, highest)
                moved = np.clip(np.rint(here - inner[:, :, column - start] / diagonal[:, None, column]), low, high)
                change = moved - here
                if change.any():
                    done[:, :, column] = moved
                    inner += change[:, :, None] * curvature[:, None, column, start:stop]
            slope += (done[:, :, start:stop] - entry) @ curvature[:, start:stop]
        if np.array_equal(before, done):
            break
    return done


def _damped(hessian: npt.NDArray[AnyFloat], shrinkage: float) -> npt.NDArray[AnyFloat]:
    """Shrinks a Hessian towards its diagonal, and adds damping to it."""
    diagonal = np.eye(hessian.shape[1], dtype=hessian.dtype)
    kept = diagonal * hessian.dtype.type(shrinkage) + hessian.dtype.type(1.0 - shrinkage)
    damped: npt.NDArray[AnyFloat] = hessian * kept + diagonal * _floor(hessian)
    return damped


def _floor(hessian: npt.NDArray[AnyFloat]) -> npt.NDArray[AnyFloat]:
    """Returns the damping, a small fraction of the mean diagonal, (groups, 1, 1); positive for unused inputs too."""
    mean = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1)
    return np.where(mean > 0.0, _DAMPING * mean, 1.0).astype(hessian.dtype)[:, None, None]


def _power(values: Samples) -> float:
    flat = values.reshape(-1)
    return float(np.square(flat, dtype=np.float64).sum())
