"""Means over parts of a text, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.llm.token_scores import Values

CONFIDENCE = 0.99
_RESAMPLES = 2000
# The 99.5 % quantiles of Student's t with 1 to 6 degrees of freedom, for parts too few to draw from.
_STUDENT = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707)
# Of the standard error of all parts; less is rounding.
_NO_ERROR = 1e-9
_DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of a text.

    Attributes:
        value: on this text.
        low: lower end of its 99 % confidence interval.
        high: upper end of it.
    """

    value: float
    low: float
    high: float

    def within(self, least: float, most: float) -> Estimate:
        """Returns the figure with an interval of values that it can have."""
        return Estimate(self.value, max(self.low, least), min(self.high, most))

    def through(self, rising: Callable[[float], float]) -> Estimate:
        """Returns a function of the figure that rises with it."""
        return Estimate(rising(self.value), rising(self.low), rising(self.high))


def mean_interval(sums: Sequence[float] | Values, counts: Sequence[float] | Values, *, seed: int = 0) -> Estimate:
    """Returns sum(sums) / sum(counts) with its confidence interval by the bootstrap-t over the parts.

    The parts are drawn with replacement; of each draw, the error is divided by the standard error that the draw itself
    shows, so that the interval holds for few parts and skewed ones, too (B. Efron and R. Tibshirani, An Introduction to
    the Bootstrap, 1993, section 12.5; the standard error of a ratio is the linearized one, W. Cochran, Sampling
    Techniques, 1977, section 6.4). Fewer than eight parts have Student's interval, and a single one has no ends.

    Args:
        sums: the sum over each part.
        counts: how many values each part has, above 0.
        seed: of the draws.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    parts, total = len(sums), float(counts.sum())
    mean = float(sums.sum()) / total
    if not math.isfinite(mean):
        return Estimate(mean, mean, mean)
    if parts == 1:
        return Estimate(mean, -math.inf, math.inf)
    residuals = sums - mean * counts
    scale = math.sqrt(parts / (parts - 1))
    error = scale * math.sqrt(float(np.square(residuals).sum())) / total
    if error == 0:
        return Estimate(mean, mean, mean)
    if parts <= len(_STUDENT) + 1:
        half = _STUDENT[parts - 2] * error
        return Estimate(mean, mean - half, mean + half)
    ratios = _studentized(residuals, counts, scale, _NO_ERROR * error, np.random.default_rng(seed))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return Estimate(mean, mean - float(high) * error, mean - float(low) * error)


def _studentized(residuals: Values, counts: Values, scale: float, least: float, random: np.random.Generator) -> Values:
    """Returns, for every draw, its error over its own standard error."""
    squares, products, weights = residuals**2, residuals * counts, counts**2
    found = []
    at_once = max(1, _DRAWN_AT_ONCE // len(residuals))
    for first in range(0, _RESAMPLES, at_once):
        draws = random.integers(len(residuals), size=(min(at_once, _RESAMPLES - first), len(residuals)))
        drawn = counts[draws].sum(1)
        off = residuals[draws].sum(1) / drawn
        spread = squares[draws].sum(1) - 2 * off * products[draws].sum(1) + off**2 * weights[draws].sum(1)
        error = scale * np.sqrt(np.maximum(spread, 0.0)) / drawn
        # A draw of one part alone, over and over, shows no error of its own.
        shows = error > least
        found.append(off[shows] / error[shows])
    return np.concatenate(found)
