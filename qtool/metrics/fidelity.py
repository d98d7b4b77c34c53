"""Fidelity: how close a model's outputs are to those of the model it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array
from qtool.errors import InputError
from qtool.metrics.output_parts import PartsMeter
from qtool.metrics.unlike_shapes import common_shape, laid_out, shared

# So many values are widened to float64 at once: a few MB, whatever the size of a batch.
_CHUNK_VALUES = 1 << 18
# Rows this close to length 1, with signs, are embeddings: their largest entry is no class.
_UNIT_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFidelity:
    """Compares one output of two models over all samples.

    A figure is None where it has no meaning for this output, and NaN where the candidate's values cannot be compared
    (``non_finite`` tells how many those are).

    Attributes:
        name: the output.
        sqnr_db: signal-to-quantization-noise ratio in dB, 10·log10(Σa²/Σ(a−b)²) over the reference's values a and the
            candidate's b; infinite where all values are the same. Of an output with parts of different magnitude,
            that of the worst part.
        cosine: Σab/√(Σa²·Σb²) over all values, 1 for the same direction; two outputs of only zeros count as 1.
        max_abs_error: the largest |a−b|.
        mean_abs_error: the mean of |a−b|.
        top1_agreement: share of rows, 0 to 1, whose largest entry sits at the same place; only for float outputs of
            the shape (N, C) with C ≥ 2 whose rows are not signed unit vectors.
        equal_share: share of equal values, 0 to 1, of an output that is not of floats.
        values: how many values were compared.
        non_finite: values that are NaN or infinite in one model and not the same in the other; values where both
            agree on being so are left out of all sums.
        unmatched_batches: batches that the two models gave different shapes; zeros stand there for the floats that one
            of them lacks, and other values that one lacks count as unequal.
        part: the part that ``sqnr_db`` is of, in words; None where it is of all values.
    """

    name: str
    sqnr_db: float | None
    cosine: float | None
    max_abs_error: float | None
    mean_abs_error: float | None
    top1_agreement: float | None
    equal_share: float | None
    values: int
    non_finite: int
    unmatched_batches: int
    part: str | None = None

    @property
    def identical(self) -> bool:
        """Whether all values are the same."""
        exact = self.max_abs_error == 0 or self.equal_share == 1
        return exact and not self.non_finite and not self.unmatched_batches


class FidelityMeter:
    """Compares outputs batch by batch; holds sums only, so that memory does not grow with the samples."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._tallies: dict[str, _Tally] = {}

    def add(self, reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> None:
        """Adds the outputs of both models for the same batch.

        Raises:
            InputError: the candidate lacks an output of the reference.
        """
        for name, expected in reference.items():
            if name not in candidate:
                raise InputError(
                    f"the candidate has no output '{name}'", fix="compare models with the same output names"
                )
            tally = self._tallies.setdefault(name, _Tally())
            got = candidate[name]
            if expected.shape != got.shape:
                tally.add_unmatched(expected, got)
            elif expected.dtype.kind == "f" and got.dtype.kind == "f":
                tally.add_floats(expected, got)
            else:
                tally.add_exact(expected, got)

    def results(self) -> tuple[OutputFidelity, ...]:
        """Returns one result an output, in the order of the reference's outputs."""
        return tuple(tally.result(name) for name, tally in self._tallies.items())


@dataclass(slots=True)
class _Tally:
    """The sums of one output so far."""

    floats: int = 0
    signal: float = 0.0
    energy: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    deviation: float = 0.0
    largest: float = 0.0
    exact: int = 0
    equal: int = 0
    rows: int = 0
    agreeing: int = 0
    all_unit: bool = True
    any_negative: bool = False
    non_finite: int = 0
    unmatched_batches: int = 0
    parts: PartsMeter = field(default_factory=PartsMeter)

    def add_floats(self, expected: Array, got: Array) -> None:
        self._add_values(expected, got)
        self.parts.add(expected, got)
        if expected.ndim == 2 and expected.shape[1] >= 2:
            self._add_rows(expected, got)

    def _add_values(self, expected: Array, got: Array) -> None:
        for a, b in _wide_pairs(expected, got):
            both = np.isfinite(a) & np.isfinite(b)
            if not both.all():
                same = (a == b) | (np.isnan(a) & np.isnan(b))
                self.non_finite += int(np.count_nonzero(~both & ~same))
                a, b = a[both], b[both]
            self.floats += a.size
            difference = np.abs(a - b)
            # A dot product would use BLAS threads, which compete with those of the runtime that has just run the model.
            self.signal += float(np.square(a).sum())
            self.energy += float(np.square(b).sum())
            self.product += float((a * b).sum())
            self.noise += float(np.square(difference).sum())
            self.deviation += float(difference.sum())
            self.largest = max(self.largest, float(difference.max(initial=0.0)))

    def add_unmatched(self, expected: Array, got: Array) -> None:
        self.unmatched_batches += 1
        shape = common_shape(expected, got)
        if expected.dtype.kind == "f" and got.dtype.kind == "f":
            self._add_values(laid_out(expected, shape), laid_out(got, shape))
            return
        one, other = shared(expected, got)
        self.exact += math.prod(shape)
        self.equal += int(np.count_nonzero(one == other))

    def add_exact(self, expected: Array, got: Array) -> None:
        self.exact += expected.size
        self.equal += int(np.count_nonzero(expected == got))

    def result(self, name: str) -> OutputFidelity:
        cosine = sqnr = largest = mean = None
        part = None
        if self.non_finite:
            cosine = sqnr = largest = mean = math.nan
        elif self.floats:
            sqnr = _decibels(self.signal, self.noise)
            for candidate in self.parts.parts():
                found = _decibels(candidate.signal, candidate.noise)
                if found < sqnr:
                    sqnr, part = found, candidate.description
            cosine = _cosine(self.product, self.signal, self.energy)
            largest, mean = self.largest, self.deviation / self.floats
        is_embedding = self.all_unit and self.any_negative
        return OutputFidelity(
            name=name,
            sqnr_db=sqnr,
            cosine=cosine,
            max_abs_error=largest,
            mean_abs_error=mean,
            top1_agreement=self.agreeing / self.rows if self.rows and not is_embedding else None,
            equal_share=self.equal / self.exact if self.exact else None,
            values=self.floats + self.exact,
            non_finite=self.non_finite,
            unmatched_batches=self.unmatched_batches,
            part=part,
        )

    def _add_rows(self, expected: Array, got: Array) -> None:
        self.rows += len(expected)
        # argmax takes a NaN for the largest: a row with one in the candidate agrees with nothing.
        sound = ~np.isnan(got).any(axis=1)
        self.agreeing += int(np.count_nonzero((expected.argmax(axis=1) == got.argmax(axis=1)) & sound))
        lengths = np.einsum("nc,nc->n", expected, expected, dtype=np.float64, casting="same_kind")
        self.all_unit = self.all_unit and bool((np.abs(lengths - 1) < _UNIT_LENGTH_TOLERANCE).all())
        self.any_negative = self.any_negative or bool((expected < 0).any())


def _wide_pairs(expected: Array, got: Array) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Yields both arrays, flat and in float64, in chunks."""
    left, right = expected.reshape(-1), got.reshape(-1)
    for first in range(0, left.size, _CHUNK_VALUES):
        chunk = slice(first, first + _CHUNK_VALUES)
        yield left[chunk].astype(np.float64), right[chunk].astype(np.float64)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf


def _cosine(product: float, signal: float, energy: float) -> float:
    if signal == 0 or energy == 0:
        return 1.0 if signal == energy else 0.0
    # Rounding may carry it past 1 by the last digit.
    return max(-1.0, min(1.0, product / math.sqrt(signal) / math.sqrt(energy)))
