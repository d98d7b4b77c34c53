"""How fast models run, measured so that they can be compared: in turns, in the same minute, on the same machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Run: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[], float]
Times: TypeAlias = npt.NDArray[np.float64]

_WARM_UPS = 3
# A turn lasts at least so long, so that neither the clock's steps nor one interruption decides it.
_TURN_SECONDS = 0.005
_LARGEST_TURN = 50
# Worker threads of the model before keep spinning for some milliseconds; runs shorter than this would feel them.
_SETTLED_SECONDS = 0.1
_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The time of one run.

    Attributes:
        median_ms: the median over the rounds, in milliseconds.
        p95_ms: the 95th percentile over the rounds, in milliseconds.
        rounds: how many rounds were measured.
    """

    median_ms: float
    p95_ms: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The median of paired ratios, with the range in which it lies with 95 % confidence.

    Attributes:
        median: the median over the rounds.
        low: lower end of the confidence interval.
        high: upper end of it.
    """

    median: float
    low: float
    high: float


def interleaved_times(
    runs: Sequence[Run],
    *,
    rounds: int,
    advance: Callable[[int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[Times, ...]:
    """Times every run once a round, in turns, and returns the seconds of each, of the shape (rounds,).

    Load that comes and goes on the machine meets all runs alike that way. The order turns around every round, so that
    none is always first. A short run is repeated within its turn and the mean counts.

    Args:
        runs: what to time.
        rounds: how many rounds, at least 1.
        advance: called with 1 after every round.
        clock: returns seconds.
    """
    repeats = [_repeats(run, clock) for run in runs]
    times = np.zeros((len(runs), rounds))
    for number in range(rounds):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for index in order:
            times[index, number] = _turn(runs[index], repeats[index], clock)
        if advance is not None:
            advance(1)
    return tuple(times)


def latency(times: Times) -> Latency:
    """Sums up the seconds of one run's rounds."""
    return Latency(
        median_ms=float(np.median(times)) * 1e3, p95_ms=float(np.quantile(times, 0.95)) * 1e3, rounds=len(times)
    )


def paired_ratio(base: Times, other: Times, *, seed: int = 0) -> Ratio:
    """Compares two runs round by round: above 1, ``other`` is the faster one.

    The interval is the percentile bootstrap's: rounds are drawn with replacement, the same for both runs, and the
    median is taken anew (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
    """
    ratios = base / other
    draws = np.random.default_rng(seed).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Ratio(median=float(np.median(ratios)), low=float(low), high=float(high))


def throughput(times: Times, *, batch_size: int) -> float:
    """Returns the samples a second of runs over batches of ``batch_size``."""
    return batch_size / float(np.median(times))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repeats:
    """How a turn is laid out: runs that are not timed, then runs that are."""

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
