"""Speedup over the float model, timed in turns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir

from qtool.backends.execution import Execution
from qtool.calib.specs import Feed
from qtool.metrics.latency import BETWEEN_SESSIONS, Interval, Times, interleaved_times, paired_ratio
from qtool.progress import Progress
from qtool.workflows.tune.times_in_turns import joined

_ROUNDS = 11
# What seems slower than float, by no more than the noise, is timed so many times in all, each with new sessions.
_MOST_TURNS = 3


def speedups(
    original: ir.Model,
    others: Sequence[ir.Model],
    feed: Feed,
    progress: Progress,
    *,
    runtime: Execution,
    threads: int = 0,
) -> list[Interval]:
    """Returns how many times faster than ``original`` each of ``others`` runs ``feed`` in ``runtime``.

    Raises:
        RuntimeRefusedError: the runtime does not load or run a model.
    """
    found = []
    with progress.task("timing in turns", _ROUNDS * len(others)) as advance:
        for other in others:
            turns: list[tuple[Times, ...]] = []
            while not turns or (len(turns) < _MOST_TURNS and _is_in_doubt(paired_ratio(*joined(turns)))):
                with runtime.open_float(original, threads=threads) as base, runtime.open(other, threads=threads) as own:
                    runs = (partial(base.run, feed), partial(own.run, feed))
                    turns.append(interleaved_times(runs, rounds=_ROUNDS, advance=None if turns else advance))
            found.append(paired_ratio(*joined(turns)))
    return found


def is_slower(speedup: Interval) -> bool:
    """Returns whether a model is slower than float, by more than two sessions of one model differ."""
    return speedup.median < 1.0 - BETWEEN_SESSIONS


def _is_in_doubt(speedup: Interval) -> bool:
    return is_slower(speedup) and speedup.high >= 1.0
