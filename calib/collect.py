"""Calibration pass: runs the data once and collects statistics of every observed tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Protocol

import numpy as np

from qtool.calib.errors import CalibError
from qtool.calib.missing_values import has_nan, places_without_nan
from qtool.calib.specs import Array, Feed, batch_length
from qtool.calib.statistics import TensorStatistics

# So many values per tensor and sample go into the histogram; the extremes always include all of them. Over the usual
# hundred samples that is about 400,000 values per tensor, in a fraction of the time of counting every value.
COUNTED_VALUES = 4096


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

    Holds one batch at a time. The histogram counts about ``COUNTED_VALUES`` values per sample of each tensor, evenly
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
    for feed, number in zip(feeds, count() if numbers is None else numbers, strict=False):
        size = batch_length(feed)
        values = runner.run(feed)
        spoilt = outputs is None or any(_is_spoilt(values[name]) for name in outputs)
        for name, value in values.items():
            if name not in statistics or _add(statistics[name], np.asarray(value, dtype=np.float32), size, exact=exact):
                continue
            if spoilt:
                raise CalibError(
                    f"the tensor '{name}' is NaN for batch {number} of the data",
                    fix="run the float model on this batch and repair it, or remove the batch from the data",
                )
            _add_rest(statistics[name], np.asarray(value, dtype=np.float32), size, exact=exact)
        # Releases the memory, so that the runtime can use it for the next batch.
        del values, value
        samples += size
        batches += 1
        if advance is not None:
            advance(size)
    if batches == 0 and not may_be_empty:
        raise CalibError("the data has no samples", fix="give at least a few dozen representative samples")
    return Collected(statistics=statistics, samples=samples, batches=batches)


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


@cache
def _step(size: int, *, limit: int) -> int:
    """Returns a prime step, so that it does not align with the rows or channels of the tensor."""
    step = max(-(-size // limit), 1)
    while step > 1 and any(step % divisor == 0 for divisor in range(2, int(step**0.5) + 1)):
        step += 1
    return step
