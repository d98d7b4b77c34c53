"""How figures are taken from a comparison of two models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.latency import Interval
from qtool.reporting.model import Measured, ModelComparison, ModelReport

Value: TypeAlias = float | None
Read: TypeAlias = Callable[[ModelComparison], Measured]
Side: TypeAlias = Callable[[ModelComparison], ModelReport]

_PERCENT_DIGITS = 9


def percent(share: float | None) -> Value:
    """Returns a share of 0 to 1 in percent."""
    # Rounded far below what matters, so that a drop of 5 samples in 1000 is 0.5 and not 0.5000000000000004.
    return None if share is None else round(100 * share, _PERCENT_DIGITS)


def agreement(output: OutputFidelity) -> Value:
    """Returns how often both models name the same class, in percent."""
    return percent(output.top1_agreement)


def equal_values(output: OutputFidelity) -> Value:
    """Returns how many values are equal, in percent."""
    return percent(output.equal_share)


def worst(of_output: Callable[[OutputFidelity], Value], choose: Callable[[list[float]], float]) -> Read:
    """Makes a figure of all outputs out of one of an output; NaN where one of them is."""

    def read(comparison: ModelComparison) -> Measured:
        known = [value for value in map(of_output, comparison.fidelity) if value is not None]
        if any(math.isnan(value) for value in known):
            return Measured(value=math.nan)  # which neither min nor max would surely pick
        return Measured(value=choose(known) if known else None)

    return read


def measured(read: Callable[[ModelComparison], Interval | None]) -> Read:
    """Makes a figure out of what was found with a confidence interval."""

    def of_comparison(comparison: ModelComparison) -> Measured:
        found = read(comparison)
        return Measured(value=None) if found is None else Measured(value=found.median, low=found.low, high=found.high)

    return of_comparison


def accuracy(side: Side, top: Literal["top1", "top5"]) -> Read:
    """Returns the accuracy of one of the models, in percent."""

    def read(comparison: ModelComparison) -> Measured:
        found = side(comparison).accuracy
        return Measured(value=None if found is None else percent(found.top1 if top == "top1" else found.top5))

    return read


def drop(left: Read, right: Read) -> Read:
    """Returns how much lower the right figure is than the left one."""

    def read(comparison: ModelComparison) -> Measured:
        a, b = left(comparison).value, right(comparison).value
        return Measured(value=None if a is None or b is None else round(a - b, _PERCENT_DIGITS))

    return read


def quotient(above: Read, below: Read) -> Read:
    """Returns one figure over another."""

    def read(comparison: ModelComparison) -> Measured:
        a, b = above(comparison).value, below(comparison).value
        return Measured(value=None if a is None or not b else a / b)

    return read


def latency(side: Side, which: Literal["median", "p95"]) -> Callable[[ModelComparison], Interval | None]:
    """Returns the time of one sample of one of the models, in milliseconds."""

    def read(comparison: ModelComparison) -> Interval | None:
        found = side(comparison).latency
        if found is None:
            return None
        if which == "median":
            return Interval(median=found.median_ms, low=found.low_ms, high=found.high_ms)
        return Interval(median=found.p95_ms, low=found.p95_low_ms, high=found.p95_high_ms)

    return read


def size(side: Side) -> Read:
    """Returns the size of one of the models on disk, in MB."""
    return lambda comparison: Measured(value=side(comparison).size_bytes / 1e6)


def memory(side: Side) -> Read:
    """Returns the peak memory of one of the models, in MB."""

    def read(comparison: ModelComparison) -> Measured:
        peak = side(comparison).memory.peak_bytes
        return Measured(value=None if peak is None else peak / 1e6)

    return read
