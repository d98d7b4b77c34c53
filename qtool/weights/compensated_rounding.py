"""Fits a layer's integers to what the float layer gives out, from inputs that carry the noise of the layers before.

The layers before a layer are quantized already: it reads x' where the float layer reads x. The weights T that minimize
E |T x' - W x|^2 are W C H^-1 with H = E[x' x'^T] and C = E[x x'^T], after linear regression; they are rounded with
error feedback under H (see ``error_feedback``), and then one integer after another is moved to where the error is least
given all the others. Source: Y. Li et al., GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration
(ICML 2025) for the asymmetric target; K. Behdin et al., QuantEase (2023) for the coordinate descent.

Some thousands of positions say little about a million of moments. Hence both are shrunk towards their diagonals, as far
as positions that were held back favour; on the diagonals alone, each input has one factor of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Samples: TypeAlias = npt.NDArray[np.float32]

# How far moments are shrunk towards their diagonals; what suits best is tried out.
_SHRINKAGE = (1.0, 0.5, 0.2, 0.05)
# For rounding, where an error in H costs less.
_ROUNDING_SHRINKAGE = 0.1
_DAMPING = 0.01
_SWEEPS = 3
_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedMoments:
    """Second moments of a layer's float inputs x and of the inputs x' that it really gets, float64.

    Attributes:
        given: E[x' x'^T], (groups, inputs, inputs).
        mixed: E[x x'^T], (groups, inputs, inputs).
        wanted: E[x x^T], (groups, inputs, inputs).
    """

    given: Floats
    mixed: Floats
    wanted: Floats

    @staticmethod
    def of(wanted: Samples, given: Samples) -> PairedMoments:
        """Gathers them from positions of both, (groups, inputs, positions)."""
        count = max(given.shape[2], 1)
        turned = given.transpose(0, 2, 1)
        return PairedMoments(
            given=(given @ turned).astype(np.float64) / count,
            mixed=(wanted @ turned).astype(np.float64) / count,
            wanted=(wanted @ wanted.transpose(0, 2, 1)).astype(np.float64) / count,
        )

    def joined(self, other: PairedMoments, *, share: float) -> PairedMoments:
        """Returns the moments over both; ``share``, 0 to 1, is the other's."""
        return PairedMoments(
            given=(1.0 - share) * self.given + share * other.given,
            mixed=(1.0 - share) * self.mixed + share * other.mixed,
            wanted=(1.0 - share) * self.wanted + share * other.wanted,
        )

    def noise(self, weight: Floats, original: Floats) -> float:
        """Returns E |T x' - W x|^2 for the weights T and W, (groups, outputs, inputs)."""
        given = np.einsum("goi,goi->", weight @ self.given, weight)
        mixed = np.einsum("goi,goi->", original @ self.mixed, weight)
        return float(given - 2.0 * mixed + self.signal(original))

    def signal(self, original: Floats) -> float:
        """Returns E |W x|^2."""
        return float(np.einsum("goi,goi->", original @ self.wanted, original))


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The grid of a layer's weights, its zero at 0; float64.

    Attributes:
        size: of each output's step, (groups, outputs, 1).
        low: the lowest number of steps, (groups, outputs, 1).
        high: the highest one.
    """

    size: Floats
    low: Floats
    high: Floats


def best_target(original: Floats, seen: PairedMoments, held_back: PairedMoments) -> float | None:
    """Returns the shrinkage under which fitted weights do best on the positions held back; None where none helps."""
    best, least = None, held_back.noise(original, original)
    for shrinkage in _SHRINKAGE:
        noise = held_back.noise(fitted(original, seen, shrinkage), original)
        if noise < least:
            best, least = shrinkage, noise
    return best


def fitted(original: Floats, moments: PairedMoments, shrinkage: float) -> Floats:
    """Returns the weights that fit best, (groups, outputs, inputs), with moments shrunk so far to their diagonals."""
    given = _shrunk(moments.given, shrinkage)
    given = given + _eye(given) * _floor(given)
    # Solves (T - W) H = W (C - H), which leaves alone what the damping of H alone would move.
    lacking = original @ _shrunk(moments.mixed - moments.given, shrinkage)
    return original + np.linalg.solve(given, lacking.transpose(0, 2, 1)).transpose(0, 2, 1)


def rounded_steps(target: Floats, moments: PairedMoments, steps: Steps) -> Floats:
    """Returns whole numbers of steps for ``target``, (groups, outputs, inputs), with little E |(T' - T) x'|^2."""
    curvature = _shrunk(moments.given, _ROUNDING_SHRINKAGE)
    curvature = curvature + _eye(curvature) * _floor(curvature)
    wanted = target / steps.size
    return _descended(_with_feedback(wanted, curvature, steps), wanted, curvature, steps)


def _with_feedback(wanted: Floats, curvature: Floats, steps: Steps) -> Floats:
    """Rounds one input at a time, from strong ones to weak ones; the rest makes up for each error."""
    order = np.argsort(-np.diagonal(curvature, axis1=1, axis2=2), axis=1, kind="stable")
    ordered = np.take_along_axis(np.take_along_axis(curvature, order[:, :, None], 1), order[:, None, :], 2)
    factor = np.linalg.cholesky(np.linalg.inv(ordered)).transpose(0, 2, 1)
    left = np.take_along_axis(wanted, order[:, None, :], 2)
    done = np.empty_like(left)
    count = left.shape[2]
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.empty((*left.shape[:2], stop - start))
        for column in range(start, stop):
            done[:, :, column] = np.clip(np.rint(left[:, :, column]), steps.low[:, :, 0], steps.high[:, :, 0])
            error = (left[:, :, column] - done[:, :, column]) / factor[:, None, column, column]
            left[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, None, column, column + 1 : stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    result = np.empty_like(done)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], done.shape), done, 2)
    return result


def _descended(start_from: Floats, wanted: Floats, curvature: Floats, steps: Steps) -> Floats:
    """Moves one input's integers after another to where the error is least, until none moves any more."""
    done = start_from.copy()
    slope = (done - wanted) @ curvature
    diagonal = np.diagonal(curvature, axis1=1, axis2=2)
    low, high = steps.low[:, :, 0], steps.high[:, :, 0]
    count = done.shape[2]
    for _ in range(_SWEEPS):
        before = done.copy()
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            inner = slope[:, :, start:stop].copy()
            entry = done[:, :, start:stop].copy()
            for column in range(start, stop):
                here = done[:, :, column]
                moved = np.clip(np.rint(here - inner[:, :, column - start] / diagonal[:, None, column]), low, high)
                change = moved - here
                if change.any():
                    done[:, :, column] = moved
                    inner += change[:, :, None] * curvature[:, None, column, start:stop]
            slope += (done[:, :, start:stop] - entry) @ curvature[:, start:stop]
        if np.array_equal(before, done):
            break
    return done


def _shrunk(moments: Floats, shrinkage: float) -> Floats:
    shrunk: Floats = moments * np.where(np.eye(moments.shape[1], dtype=bool), 1.0, 1.0 - shrinkage)
    return shrunk


def _eye(moments: Floats) -> npt.NDArray[Any]:
    return np.eye(moments.shape[1])


def _floor(moments: Floats) -> Floats:
    """Returns a small part of the mean diagonal, (groups, 1, 1); above zero where an input was never seen."""
    mean = np.diagonal(moments, axis1=1, axis2=2).mean(axis=1)
    return np.where(mean > 0.0, _DAMPING * mean, 1.0)[:, None, None]
