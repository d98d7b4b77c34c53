"""Speedup over the float model, timed in turns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir

from qtool.backends.execution import Execution
from qtool.calib.specs import Feed
from qtool.metrics.latency import Interval, interleaved_times, paired_ratio
from qtool.progress import Progress

_ROUNDS = 11


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
            with runtime.open_float(original, threads=threads) as base, runtime.open(other, threads=threads) as rival:
                runs = (partial(base.run, feed), partial(rival.run, feed))
                times = interleaved_times(runs, rounds=_ROUNDS, advance=advance)
            found.append(paired_ratio(*times))
    return found
