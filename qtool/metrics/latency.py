"""Latency of models, measured in turns on the same machine so that they can be compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Run: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[], float]
Times: TypeAlias = npt.NDArray[np.float64]

_WARM_UPS = 3
# The shortest turn, so that neither the clock's resolution nor one interruption dominates.
_TURN_SECONDS = 0.005
_LARGEST_TURN = 50
# Worker threads of the model before keep spinning for some milliseconds; runs shorter than this would be affected.
_SETTLED_SECONDS = 0.1
_RESAMPLES = 2000
_CONFIDENCE = 0.99
# Two sessions of the same model differ by so much, since their memory is allocated at different addresses.
BETWEEN_SESSIONS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median over rounds, with its 99 % confidence interval.

    Attributes:
        median: the median over the rounds.
        low: lower end of the confidence interval.
        high: upper end of it.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The time of one run.

    Attributes:
        median_ms: the median over the rounds, in milliseconds.
        low_ms: lower end of its confidence interval.
        high_ms: upper end of it.
        p95_ms: the 95th percentile over the rounds, in milliseconds.
        p95_low_ms: lower end of its confidence interval.
        p95_high_ms: upper end of it.
        rounds: how many rounds were measured.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    p95_ms: float
    p95_low_ms: float
    p95_high_ms: float
    rounds: int


def interleaved_times(
    runs: Sequence[Run],
    *,
    rounds: int,
    advance: Callable[[int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[Times, ...]:
    """Times every run once a round, in turns, and returns the seconds of each, of the shape (rounds,).

    A short run is repeated within its turn and the mean counts.

    Args:
        runs: what to time.
        rounds: how many rounds, at least 1.
        advance: called with 1 after every round.
        clock: returns seconds.
    """
    repeats = [_repeats(run, clock) for run in runs]
    turns = [partial(_turn, run, repeat, clock) for run, repeat in zip(runs, repeats, strict=True)]
    return interleaved_turns(turns, rounds=rounds, advance=advance)


def interleaved_turns(
    turns: Sequence[Clock], *, rounds: int, advance: Callable[[int], None] | None = None
) -> tuple[Times, ...]:
    """Calls every one once a round, in turns, and returns the seconds that each told, of the shape (rounds,).

    Changing load on the machine thus affects all of them alike. The order is reversed every round, so that none is
    always first.

    Args:
        turns: each runs something and returns how long a run took.
        rounds: how many rounds, at least 1.
        advance: called with 1 after every round.
    """
    times = np.zeros((len(turns), rounds))
    for number in range(rounds):
        order = range(len(turns)) if number % 2 == 0 else reversed(range(len(turns)))
        for index in order:
            times[index, number] = turns[index]()
        if advance is not None:
            advance(1)
    return tuple(times)


def latency(times: Times) -> Latency:
    """Sums up the seconds of one run's rounds."""
    median, p95 = run_milliseconds(times), _interval(times * 1e3, 0.95)
    return Latency(
        median_ms=median.median,
        low_ms=median.low,
        high_ms=median.high,
        p95_ms=p95.median,
        p95_low_ms=p95.low,
        p95_high_ms=p95.high,
        rounds=len(times),
    )


def paired_ratio(base: Times, other: Times, *, seed: int = 0) -> Interval:
    """Compares two runs round by round: above 1, ``other`` is the faster one."""
    return _interval(base / other, 0.5, seed=seed)


def run_milliseconds(times: Times) -> Interval:
    """Returns the median time of a run, in milliseconds."""
    return _interval(times * 1e3, 0.5)


def throughput(times: Times, *, batch_size: int) -> Interval:
    """Returns the samples a second of runs over batches of ``batch_size``."""
    return _interval(batch_size / times, 0.5)


def _interval(values: Times, quantile: float, *, seed: int = 0) -> Interval:
    """Finds a quantile and its confidence interval by the percentile bootstrap.

    Rounds are drawn with replacement, and the quantile is taken again (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13). The systematic error, which more rounds do not reduce, is added on both sides.
    """
    draws = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    found = np.quantile(values[draws], quantile, axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(found, (tail, 1 - tail))
    return Interval(
        median=float(np.quantile(values, quantile)),
        low=float(low) / (1 + BETWEEN_SESSIONS),
        high=float(high) * (1 + BETWEEN_SESSIONS),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repeats:
    """How many runs of a turn are warm-up, and how many are timed."""

    settling: int
    timed: int


def _repeats(run: Run, clock: Clock) -> _Repeats:
    for _ in range(_WARM_UPS - 1):
        run()
    start = clock()
    run()
    seconds = max(clock() - start, 1e-9)
    return _Repeats(
        settling=1 if seconds < _SETTLED_SECONDS else 0,
        timed=max(1, min(_LARGEST_TURN, math.ceil(_TURN_SECONDS / seconds))),
    )


def _turn(run: Run, repeats: _Repeats, clock: Clock) -> float:
    for _ in range(repeats.settling):
        run()
    start = clock()
    for _ in range(repeats.timed):
        run()
    # A clock that stands still would make the ratios infinite.
    return max(clock() - start, 1e-9) / repeats.timed
