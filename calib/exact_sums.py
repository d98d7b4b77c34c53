"""Sums of floats without rounding, so that neither the order of the terms nor their split into parts matters.

Each sum is an integer in base 2^32, whose digits may grow while terms are added; what is read or written is its one
balanced form, all digits of which lie in [-2^31, 2^31).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_DIGIT_BITS = 32
_HALF = 1 << (_DIGIT_BITS - 1)
# Digits are below 2^32 when they are added: so many of them cannot leave 64 bits.
_MOST_TERMS = 1 << 30
# Terms wait until they are so many, and so many numbers: digits of many cost hardly more than those of a few.
_MOST_WAITING = 64
_MOST_WAITING_NUMBERS = 8192
# Beyond any exponent of a float64, with room for as many terms as fit.
_PLACES = range(-34, 36)


@dataclass(frozen=True, slots=True)
class Digits:
    """The balanced form of sums.

    Attributes:
        lowest: the place of the first digit, which counts units of 2^(32·lowest).
        values: int32, (digits, sums): the digits of each sum, the lowest place first.
    """

    lowest: int
    values: npt.NDArray[np.int32]


class ExactSums:
    """Adds up vectors of float64, component by component."""

    def __init__(self, size: int) -> None:
        """Begins ``size`` sums at zero."""
        self.size = size
        self._waiting: list[npt.NDArray[np.floating[Any]]] = []
        self._waiting_numbers = self._terms = 0
        self._places: dict[int, npt.NDArray[np.int64]] = {}

    @staticmethod
    def of(values: npt.NDArray[np.floating[Any]]) -> ExactSums:
        """Returns sums of one term each, (sums,)."""
        sums = ExactSums(len(values))
        sums.add(values[np.newaxis])
        return sums

    def __eq__(self, other: object) -> bool:
        """Returns whether all sums are the same."""
        if not isinstance(other, ExactSums):
            return NotImplemented
        one, two = self.digits(), other.digits()
        return one.lowest == two.lowest and np.array_equal(one.values, two.values)

    __hash__ = None  # type: ignore[assignment]

    def add(self, terms: npt.NDArray[np.floating[Any]]) -> None:
        """Adds finite terms, (terms, sums), which are not to change afterwards; others are an error when they count."""
        self._waiting.append(terms)
        self._waiting_numbers += terms.size
        if len(self._waiting) > _MOST_WAITING or self._waiting_numbers > _MOST_WAITING_NUMBERS:
            self._settle()

    def merge(self, other: ExactSums) -> None:
        """Adds the sums of ``other``, of which there are equally many."""
        other._settle()
        self._count(other._terms)
        for place, digits in other._places.items():
            self._put(place, digits)

    def rounded(self) -> npt.NDArray[np.float64]:
        """Returns the sums as float64, (sums,); equal sums give equal numbers."""
        digits = self.digits()
        total = np.zeros(self.size)
        for place, values in enumerate(digits.values, start=digits.lowest):
            total += np.ldexp(values.astype(np.float64), place * _DIGIT_BITS)
        return total

    def digits(self) -> Digits:
        """Returns the balanced form; the outer places hold a digit that is not zero."""
        self._settle()
        places = dict(_balanced(self._places, self.size))
        used = [place for place, digits in places.items() if digits.any()]
        if not used:
            return Digits(0, np.zeros((0, self.size), np.int32))
        lowest, highest = min(used), max(used)
        empty = np.zeros(self.size, np.int64)
        rows = [places.get(place, empty) for place in range(lowest, highest + 1)]
        return Digits(lowest, np.stack(rows).astype(np.int32))

    @staticmethod
    def from_digits(digits: Digits) -> ExactSums:
        """Returns the sums that ``digits`` stand for.

        Raises:
            ValueError: a place is beyond those of float64.
        """
        sums = ExactSums(digits.values.shape[1])
        sums._count(1)
        for place, values in enumerate(digits.values, start=digits.lowest):
            if place not in _PLACES:
                raise ValueError(f"there is no place {place}")
            sums._put(place, values.astype(np.int64))
        return sums

    def copy(self) -> ExactSums:
        """Returns sums of the same values that grow apart from these."""
        twin = ExactSums(self.size)
        twin.merge(self)
        return twin

    def _settle(self) -> None:
        if not self._waiting:
            return
        rest = np.concatenate(self._waiting).astype(np.float64)
        self._count(len(rest))
        self._waiting, self._waiting_numbers = [], 0
        if not np.isfinite(rest).all():
            raise ValueError("a term is not finite")
        place = math.frexp(float(np.abs(rest).max(initial=0.0)))[1] // _DIGIT_BITS
        while rest.any():
            digits = np.trunc(np.ldexp(rest, -place * _DIGIT_BITS))
            rest -= np.ldexp(digits, place * _DIGIT_BITS)
            self._put(place, digits.astype(np.int64).sum(axis=0))
            place -= 1

    def _put(self, place: int, digits: npt.NDArray[np.int64]) -> None:
        held = self._places.get(place)
        self._places[place] = digits if held is None else held + digits

    def _count(self, terms: int) -> None:
        self._terms += terms
        if self._terms > _MOST_TERMS:
            self._places, self._terms = dict(_balanced(self._places, self.size)), terms


def _balanced(places: Mapping[int, npt.NDArray[np.int64]], size: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yields the same sums with all digits in [-2^31, 2^31), by place."""
    carry = np.zeros(size, np.int64)
    for place in range(min(places, default=0), max(places, default=-1) + 1):
        digits = places.get(place, 0) + carry
        carry = (digits + _HALF) >> _DIGIT_BITS
        yield place, digits - (carry << _DIGIT_BITS)
    place = max(places, default=-1) + 1
    while carry.any():
        digits, carry = carry, (carry + _HALF) >> _DIGIT_BITS
        yield place, digits - (carry << _DIGIT_BITS)
        place += 1
