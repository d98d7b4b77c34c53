"""Times models in turns, so that changing load on the machine affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.metrics.latency import Times, interleaved_times
from qtool.progress import Advance, Progress
from qtool.runtime.graphs import open_graph
from qtool.workflows.tune.model_pace import ModelPace

ROUNDS = 9
# A machine that is busy for a moment makes a choice look slow, and so does a session whose memory lies badly: models
# are timed so many times, each with new sessions, unless that takes more seconds than these.
_MOST_TURNS = 3
_TURNS_SECONDS = 3.0
# Ratios that differ by less than this fraction in two sets need no third one.
_ALIKE = 0.02
# Medians that are so many times apart stay in order in other sessions.
_CLEARLY_APART = 1.25
# So many times the shortest time of the first model are another phase of the machine.
_DISTURBED = 1.2


def _never(_: float) -> bool:
    return False


def times_of_contenders(
    models: Sequence[ir.Model], feed: Feed, progress: Progress, threads: int, pace: ModelPace
) -> dict[int, Times]:
    """Times models in turns, and returns the seconds of each run of those that may be the fastest, by their number.

    Models that the first set of sessions shows to be clearly slower than another one are left out of further sets.
    ``pace`` is that of the first model.
    """
    first = pace.steady(lambda: _one_set(models, feed, progress, threads))
    medians = [float(np.median(own)) for own in first]
    left = [number for number, median in enumerate(medians) if median < _CLEARLY_APART * min(medians)]
    times = [first[number] for number in left]
    if len(left) > 1:
        times = repeated_times([models[number] for number in left], feed, progress, threads, before=times)
    return dict(zip(left, times, strict=True))


def repeated_times(
    models: Sequence[ir.Model],
    feed: Feed,
    progress: Progress,
    threads: int,
    *,
    before: Sequence[Times] | None = None,
    will_repeat: Callable[[float], bool] = _never,
) -> list[Times]:
    """Times models in turns, small ones in several sets of sessions, and returns the seconds of each run.

    ``before`` is a first set. One is enough where ``will_repeat`` returns, for the seconds of the first model, that
    everything is measured again.
    """
    found = [] if before is None else [before]
    end = time.monotonic() + _TURNS_SECONDS
    while not found or (len(found) < _MOST_TURNS and time.monotonic() < end):
        found.append(_one_set(models, feed, progress, threads))
        is_enough = _agree(*found[-2:]) if len(found) > 1 else will_repeat(float(np.median(found[0][0])))
        if is_enough:
            break
    return joined(found)


def _one_set(models: Sequence[ir.Model], feed: Feed, progress: Progress, threads: int) -> Sequence[Times]:
    with progress.task("timing in turns", ROUNDS) as advance:
        return times_in_turns(models, feed, advance, threads=threads)


def _agree(before: Sequence[Times], now: Sequence[Times]) -> bool:
    """Returns whether each model took as long, relative to the first one, in two sets of sessions."""
    ratios = [[float(np.median(own) / np.median(times[0])) for own in times] for times in (before, now)]
    return all(abs(one - other) <= _ALIKE * other for one, other in zip(*ratios, strict=True))


def joined(turns: Sequence[Sequence[Times]]) -> list[Times]:
    """Returns the times of each model in all turns but those in which the first one took clearly longer."""
    firsts = [float(np.median(times[0])) for times in turns]
    steady = [times for times, first in zip(turns, firsts, strict=True) if first <= _DISTURBED * min(firsts)]
    return [np.concatenate(times) for times in zip(*steady, strict=True)]


def times_in_turns(models: Sequence[ir.Model], feed: Feed, advance: Advance, *, threads: int = 0) -> tuple[Times, ...]:
    """Times runs of several models in turns, and returns the seconds of each, one per round.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    with ExitStack() as stack:
        sessions = [stack.enter_context(open_graph(model, threads=threads)) for model in models]
        return interleaved_times([partial(session.run, feed) for session in sessions], rounds=ROUNDS, advance=advance)
