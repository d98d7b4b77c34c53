"""How long a model takes until its first result, in a process that starts with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qtool.calib.specs import Array
from qtool.metrics.fresh_process import FirstRun, run_in_fresh_process
from qtool.metrics.latency import Interval

# The median lies outside of 8 values with a probability of 2/2^8: the shortest and the longest of them are the ends of
# its 99 % confidence interval (David and Nagaraja, Order Statistics, 2003, section 7.1).
STARTS = 8


def cold_starts(
    models: Sequence[Path],
    feeds: Mapping[str, Array],
    *,
    threads: int,
    runtimes: Sequence[str],
    advance: Callable[[int], None],
) -> tuple[Interval | None, ...]:
    """Opens and runs each model in separate processes, in turns, and returns milliseconds; None where one fails.

    Starting Python and importing the runtime is not in it: every model needs that, and other programs do not.

    Args:
        models: the files.
        feeds: one sample.
        threads: threads inside an operator; 0 is one per core.
        runtimes: the runtime of each model.
        advance: called with 1 after every process.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(STARTS):
        for place, (model, runtime) in enumerate(zip(models, runtimes, strict=True)):
            run = run_in_fresh_process(model, feeds, threads=threads, runtime=runtime)
            if isinstance(run, FirstRun):
                seconds[place].append(run.seconds * 1e3)
            advance(1)
    return tuple(
        Interval(median=statistics.median(times), low=min(times), high=max(times)) if len(times) == STARTS else None
        for times in seconds
    )
