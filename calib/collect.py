"""Calibration pass: runs the data once and collects statistics of every observed tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from typing import Protocol

import numpy as np

from qtool.calib.errors import CalibError
from qtool.calib.missing_values import has_nan, places_without_nan
from qtool.calib.specs import Array, Feed
from qtool.calib.statistics import TensorStatistics

# So many values per tensor and sample go into the histogram; the extremes always include all of them. Over the usual
# hundred samples that is about 400,000 values per tensor, in a fraction of the time of counting every value.
COUNTED_VALUES = 4096
# A batch of this many bytes is held while the next one runs: less takes no time, and more is not to be held twice.
_LEAST_BESIDE_BYTES, _MOST_BESIDE_BYTES = 1 << 20, 512 << 20


class Runner(Protocol):
    """Runs a graph that returns the observed tensors."""

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Returns the observed tensors, by name, for one batch of inputs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The result of a calibration pass.

    Attributes:
        statistics: by tensor name.
        samples: how many samples passed, by the first axis of the first input.
        batches: how many batches passed.
    """

    statistics: Mapping[str, TensorStatistics]
    samples: int
    batches: int

    @property
    def unreached(self) -> tuple[str, ...]:
        """Tensors that never had a value: an empty tensor, or a branch that was not taken."""
        return tuple(name for name, seen in self.statistics.items() if seen.batches == 0)


def collect(
    runner: Runner,
    feeds: Iterable[Feed],
    tensors: Sequence[str],
    *,
    channel_axes: Mapping[str, int] | None = None,
    exact: bool = False,
    advance: Callable[[int], None] | None = None,
    outputs: Sequence[str] | None = None,
    numbers: Iterable[int] | None = None,
    may_be_empty: bool = False,
) -> Collected:
    """Runs every batch once and collects the statistics of ``tensors``.

    Holds one batch, and while its values are added another one that the runner works on, unless they are large. The
    histogram counts about ``COUNTED_VALUES`` values per sample of each tensor, evenly
    spaced, or with ``exact`` every value. Tensors named in ``channel_axes`` also get the sum of each channel along
    that axis.

    With ``outputs``, which the runner returns as well, NaN that reaches none of them comes from padding or a branch not
    taken, and is ignored; without them any NaN is an error. ``numbers`` are the batches' numbers in the data, where
    some batches are left out. ``may_be_empty`` says whether there may be none.

    Raises:
        CalibError: there was no data and has to be some, or a tensor holds NaN.
    """
    axes = channel_axes or {}
    statistics = {name: TensorStatistics(channel_axis=axes.get(name)) for name in tensors}
    samples = batches = 0
    with ThreadPoolExecutor(max_workers=1) as beside:
        last: Future[None] | None = None
        for feed, number in zip(feeds, count() if numbers is None else numbers, strict=False):
            size = _batch_size(feed)
            try:
                values = dict(runner.run(feed))
            finally:
                # Its errors come first.
                if last is not None:
                    last.result()
            take = partial(_take, statistics, values, size, number, exact=exact, outputs=outputs)
            last = None
            if _LEAST_BESIDE_BYTES <= sum(value.nbytes for value in values.values()) <= _MOST_BESIDE_BYTES:
                _keep_inputs(values, feed)
                last = beside.submit(take)  # while the runtime runs the next batch
            else:
                take()
            del values, take
            samples += size
            batches += 1
            if advance is not None:
                advance(size)
        if last is not None:
            last.result()
    if batches == 0 and not may_be_empty:
        raise CalibError("the data has no samples", fix="give at least a few dozen representative samples")
    return Collected(statistics=statistics, samples=samples, batches=batches)


def _keep_inputs(values: dict[str, Array], feed: Feed) -> None:
    """Copies the observed tensors that are inputs as they are, whose memory may hold the next batch before long."""
    for name, value in values.items():
        if any(np.may_share_memory(value, given) for given in feed.values()):
            values[name] = value.copy()


def _take(
    statistics: Mapping[str, TensorStatistics],
    values: dict[str, Array],
    samples: int,
    number: int,
    *,
    exact: bool,
    outputs: Sequence[str] | None,
) -> None:
    """Adds one batch to the statistics, and removes its tensors from ``values`` one by one."""
    spoilt = outputs is None or any(_is_spoilt(values[name]) for name in outputs)
    for name in list(values):
        # Releases the memory, so that the runtime can use it for the next batch.
        value = values.pop(name)
        if name not in statistics or _add(statistics[name], np.asarray(value, dtype=np.float32), samples, exact=exact):
            continue
        if spoilt:
            raise CalibError(
                f"the tensor '{name}' is NaN for batch {number} of the data",
                fix="run the float model on this batch and repair it, or remove the batch from the data",
            )
        _add_rest(statistics[name], np.asarray(value, dtype=np.float32), samples, exact=exact)


def _add(seen: TensorStatistics, array: Array, samples: int, *, exact: bool) -> bool:
    """Adds one batch of one tensor; returns False when it holds a NaN."""
    flat, infinite = array.reshape(-1), seen.infinite
    step = 1 if exact else _step(flat.size, limit=COUNTED_VALUES * samples)
    in_rows = array.ndim > 0 and array.shape[0] == samples
    if not seen.add(flat, flat[::step], samples=samples if in_rows else 1):
        return False
    if seen.channel_axis is not None and flat.size and seen.infinite == infinite:
        seen.add_channels(array)
    return True


def _add_rest(seen: TensorStatistics, array: Array, samples: int, *, exact: bool) -> None:
    """Adds the values of one batch of one tensor that are not NaN."""
    kept, axis = array[~np.isnan(array)], seen.channel_axis
    step = 1 if exact else _step(max(kept.size, 1), limit=COUNTED_VALUES * samples)
    infinite = seen.infinite
    seen.add(kept, kept[::step])
    if axis is None or not -array.ndim <= axis < array.ndim or seen.infinite != infinite:
        return
    rows = places_without_nan(array, axis)
    if rows.shape[1] and array.ndim > 1:
        # The positions go to another axis than the channels.
        other = 1 if axis % array.ndim == 0 else 0
        shape = [1] * array.ndim
        shape[axis], shape[other] = rows.shape
        seen.add_channels((rows if other else rows.T).reshape(shape))


def _is_spoilt(value: Array) -> bool:
    return value.dtype.kind == "f" and has_nan(value)


def _batch_size(feed: Feed) -> int:
    first = next(iter(feed.values()))
    return int(first.shape[0]) if first.ndim else 1


@cache
def _step(size: int, *, limit: int) -> int:
    """Returns a prime step, so that it does not align with the rows or channels of the tensor."""
    step = max(-(-size // limit), 1)
    while step > 1 and any(step % divisor == 0 for divisor in range(2, int(step**0.5) + 1)):
        step += 1
    return step
