"""The GPTQ kernel: rounds weights one input at a time; the remaining inputs compensate each rounding error.

Source: E. Frantar et al., GPTQ (ICLR 2023), algorithm 1, after the optimal brain surgeon: with U the upper Cholesky
factor of the inverse of the Hessian H, an error e in column j is best compensated by subtracting e * U[j, k] / U[j, j]
from every later column k, and costs (e / U[j, j])^2.

Where kernels add the products of two weights in 16 bits, the first weight of a pair limits the second. The excess of
the pair is first divided at the least cost: with e1 + e2 given, e1 / e2 = U[1, 1]^2 / U[2, 2]^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLimit:
    """Limits the sum of two integers of the same sign.

    Attributes:
        partners: by input, the one that it is added to, (inputs,); an input without one is its own partner.
        largest: the largest sum.
        zeros: the integer that stands for 0, (groups, outputs).
    """

    partners: npt.NDArray[np.intp]
    largest: int
    zeros: Floats

    def bounds(self, partner: Floats) -> tuple[Floats, Floats]:
        """Returns the fewest and the most steps given the partner's steps, (groups, outputs) each."""
        stored = partner + self.zeros
        low: Floats = -self.largest - np.minimum(stored, 0.0) - self.zeros
        high: Floats = self.largest - np.maximum(stored, 0.0) - self.zeros
        return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """The processing order and the Cholesky factor of a Hessian.

    Attributes:
        order: the inputs by decreasing diagonal of the Hessian, (groups, inputs).
        factor: U, the upper Cholesky factor of the inverse of the Hessian in that order, (groups, inputs, inputs).
    """

    order: npt.NDArray[np.intp]
    factor: Floats

    @staticmethod
    def of(hessian: Floats) -> Curvature:
        """Computes it from E[x x^T] with damping, (groups, inputs, inputs)."""
        order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
        every = np.arange(len(hessian))[:, np.newaxis, np.newaxis]
        # With H = R R^T and R upper triangular, U is the inverse of R: R is the factor of H backwards, backwards.
        back = order[:, ::-1]
        backwards = hessian[every, back[:, :, np.newaxis], back[:, np.newaxis, :]]
        upper = np.asarray(np.linalg.cholesky(backwards)[:, ::-1, ::-1], np.float64)
        return Curvature(order=order, factor=_inverse_of_upper(upper))


def _inverse_of_upper(matrices: Floats) -> Floats:
    """Returns the inverses of upper triangular matrices, (groups, inputs, inputs), block by block."""
    count = matrices.shape[1]
    if count <= _BLOCK:
        return np.asarray(np.linalg.inv(matrices), np.float64)
    half = count // 2
    first = _inverse_of_upper(matrices[:, :half, :half])
    last = _inverse_of_upper(matrices[:, half:, half:])
    inverses = np.zeros_like(matrices, order="C")
    inverses[:, :half, :half], inverses[:, half:, half:] = first, last
    inverses[:, :half, half:] = -(first @ matrices[:, :half, half:]) @ last
    return inverses


def gptq(
    steps: Floats,
    curvature: Curvature,
    low: Floats,
    high: Floats,
    pairs: PairLimit | None = None,
    *,
    sizes: Floats | None = None,
) -> Floats:
    """Returns ``steps`` rounded to whole steps with little error in the products, strong inputs first.

    Args:
        steps: the weights in units of their scales, (groups, outputs, inputs).
        curvature: of the layer's inputs.
        low: the fewest steps, (groups, outputs), or for each input, (groups, outputs, inputs).
        high: the most steps, in the same form.
        pairs: limit on the sums of pairs; None where there is none.
        sizes: the scales, (groups, outputs, inputs), where they differ from input to input of one output.
    """
    groups, _, count = steps.shape
    order, factor = curvature.order, curvature.factor
    every = np.arange(groups)[:, np.newaxis]

    def inputs_first(values: Floats) -> Floats:
        """Arranges values so that the remaining columns are contiguous in memory."""
        return np.ascontiguousarray(values.transpose(0, 2, 1)[every, order])

    left = inputs_first(steps)
    lows, highs = (inputs_first(bound) if bound.ndim == steps.ndim else None for bound in (low, high))
    units = None if sizes is None else inputs_first(sizes)
    if units is not None:
        left *= units
    done = np.empty_like(left)
    places = None if pairs is None else _places(order, pairs.partners)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.empty((groups, stop - start, left.shape[2]))
        for column in range(start, stop):
            unit = 1.0 if units is None else units[:, column]
            wanted = left[:, column] if units is None else left[:, column] / unit
            lowest = low if lows is None else lows[:, column]
            highest = high if highs is None else highs[:, column]
            if pairs is not None and places is not None:
                wanted, lowest, highest = _beside_partner(
                    wanted, lowest, highest, left, done, factor, column, places, pairs
                )
            np.clip(np.rint(wanted), lowest, highest, out=done[:, column])
            error = (left[:, column] - unit * done[:, column]) / factor[:, column, column, np.newaxis]
            left[:, column + 1 : stop] -= factor[:, column, column + 1 : stop, np.newaxis] * error[:, np.newaxis]
            errors[:, column - start] = error
        left[:, stop:] -= factor[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    result = np.empty_like(done)
    result[every, order] = done
    return result.transpose(0, 2, 1)


def _places(order: npt.NDArray[np.intp], partners: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Returns the position of every input's partner in the group's order, (groups, inputs)."""
    position = np.argsort(order, axis=1)
    return np.take_along_axis(position, partners[order], 1)


def _beside_partner(
    wanted: Floats,
    low: Floats,
    high: Floats,
    left: Floats,
    done: Floats,
    factor: Floats,
    column: int,
    places: npt.NDArray[np.intp],
    pairs: PairLimit,
) -> tuple[Floats, Floats, Floats]:
    """Returns the rounding target of a column and its bounds under the pair limit."""
    groups = np.arange(len(left))
    place = places[:, column]
    is_second = place < column
    has_partner = (place != column)[:, np.newaxis]
    second = is_second[:, np.newaxis]
    partner = np.where(second, done[groups, place], left[groups, place])
    lowest, highest = pairs.bounds(partner)
    low, high = (
        np.where(second, np.maximum(low, lowest), low),
        np.where(second, np.minimum(high, highest), high),
    )
    # The first of a pair leaves its partner the room that costs both together least.
    over = np.minimum(wanted - lowest, 0.0) + np.maximum(wanted - highest, 0.0)
    own = np.square(factor[:, column, column])
    other = np.square(factor[groups, place, place])
    share = (own / (own + other))[:, np.newaxis]
    return np.where(has_partner & ~second, wanted - share * over, wanted), low, high
