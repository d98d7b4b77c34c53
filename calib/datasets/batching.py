"""Makes batches of the model's size from chunks of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.calib.datasets.base import Remark
from qtool.calib.errors import CalibError
from qtool.calib.specs import Array, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive samples.

    Attributes:
        arrays: by input name.
        rows: samples along the first axis of every array, or None for one whole feed that cannot be divided.
    """

    arrays: dict[str, Array]
    rows: int | None

    def part(self, first: int, last: int) -> Chunk:
        """Returns the samples from ``first`` up to, but without, ``last``."""
        return Chunk(arrays={name: value[first:last] for name, value in self.arrays.items()}, rows=last - first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The samples to use, and the batch size.

    Attributes:
        skip: samples to skip first.
        limit: samples to use at most, None for all.
        batch_size: samples per batch.
        exact: whether the model fixes the batch size.
    """

    skip: int
    limit: int | None
    batch_size: int
    exact: bool

    def stop(self, count: int) -> int:
        """Returns the number after the last sample to use, of ``count`` in all."""
        return count if self.limit is None else min(count, self.skip + self.limit)


def window_for(
    inputs: Sequence[TensorSpec], *, batch_size: int, limit: int | None, skip: int, count: int | None, where: str
) -> Window:
    """Determines the batch size and checks that there is at least one batch, where ``count`` is known.

    Raises:
        CalibError: a number is out of range, or there are too few samples.
    """
    for name, value, least in (("batch size", batch_size, 1), ("limit", limit, 1), ("skip", skip, 0)):
        if value is not None and value < least:
            raise CalibError(f"the {name} is {value}", fix=f"make it at least {least}")
    fixed = fixed_batch_size(inputs)
    if fixed is not None and batch_size not in (1, fixed):
        raise CalibError(
            f"the model takes batches of exactly {fixed}, not of {batch_size}",
            fix=f"leave the batch size to the model, or give {fixed}",
        )
    window = Window(
        skip=skip,
        limit=limit,
        batch_size=batch_size if fixed is None else fixed,
        exact=fixed is not None,
    )
    if count is not None:
        _check_count(window, count, where)
    return window


def fixed_batch_size(inputs: Sequence[TensorSpec]) -> int | None:
    """Returns the first dimension that all inputs fix to the same length, or None."""
    firsts = {spec.shape[0] if spec.shape else None for spec in inputs}
    first = firsts.pop() if len(firsts) == 1 else None
    return first if isinstance(first, int) else None


def is_one_batch_axis(inputs: Sequence[TensorSpec]) -> bool:
    """Returns whether the first axis of every input may hold the samples."""
    if any(spec.shape == () for spec in inputs):
        return False
    firsts = {spec.shape[0] for spec in inputs if spec.shape}
    fixed = {first for first in firsts if isinstance(first, int)}
    return len(fixed) == 0 or len(firsts) == 1


def batches(
    chunks: Iterator[Chunk], window: Window, *, where: str, remark: Remark | None
) -> Iterator[dict[str, Array]]:
    """Yields batches of ``window.batch_size``; samples of different shapes never share one.

    Whole feeds pass unchanged and count as one sample. ``chunks`` already start after ``window.skip`` and end at
    ``window.limit`` (see ``wanted``).

    Raises:
        CalibError: there was no sample, or too few to fill a batch of the model's size.
    """
    held: list[Chunk] = []
    held_rows = left_out = given = seen = 0
    for chunk in chunks:
        seen += 1
        if chunk.rows is None or (held and not _alike(held[0], chunk)):
            if held_rows and not window.exact:
                yield _joined(held)
                given += 1
            elif held_rows:
                left_out += held_rows
            held, held_rows = [], 0
        if chunk.rows is None:
            yield chunk.arrays
            given += 1
            continue
        first = 0
        while chunk.rows - first >= window.batch_size - held_rows:
            last = first + window.batch_size - held_rows
            yield _joined([*held, chunk.part(first, last)])
            given += 1
            held, held_rows, first = [], 0, last
        if first < chunk.rows:
            held.append(chunk.part(first, chunk.rows))
            held_rows += chunk.rows - first
    if held_rows and not window.exact:
        yield _joined(held)
        return
    left_out += held_rows
    if not seen:
        raise _no_samples(where)
    if not given:
        raise _no_full_batch(where, left_out, window.batch_size)
    if left_out and remark is not None:
        remark(
            f"{left_out} samples of {where} do not fill a batch of {window.batch_size} and are left out"
            if left_out > 1
            else f"1 sample of {where} does not fill a batch of {window.batch_size} and is left out"
        )


def wanted(chunks: Iterator[Chunk], window: Window) -> Iterator[Chunk]:
    """Drops the samples before ``window.skip`` and stops at ``window.limit``."""
    position = 0
    end = None if window.limit is None else window.skip + window.limit
    for chunk in chunks:
        rows = 1 if chunk.rows is None else chunk.rows
        first = max(window.skip - position, 0)
        last = rows if end is None else min(rows, end - position)
        position += rows
        if first < last:
            yield chunk if (first, last) == (0, rows) else chunk.part(first, last)
        if end is not None and position >= end:
            return


def _check_count(window: Window, count: int, where: str) -> None:
    if count == 0:
        raise _no_samples(where)
    if window.skip >= count:
        raise CalibError(
            f"{where} has {count} samples and {window.skip} are to be skipped", fix=f"skip at most {count - 1}"
        )
    rows = window.stop(count) - window.skip
    if window.exact and rows < window.batch_size:
        raise _no_full_batch(where, rows, window.batch_size)


def _no_samples(where: str) -> CalibError:
    return CalibError(f"{where} has no samples", fix="give at least a few dozen representative samples")


def _no_full_batch(where: str, rows: int, batch_size: int) -> CalibError:
    return CalibError(
        f"the {rows} samples of {where} do not fill one batch of exactly {batch_size}, which the model requires",
        fix=f"give at least {batch_size} samples of one shape, or export the model with a free batch dimension",
    )


def _alike(first: Chunk, second: Chunk) -> bool:
    return all(value.shape[1:] == second.arrays[name].shape[1:] for name, value in first.arrays.items())


def _joined(parts: list[Chunk]) -> dict[str, Array]:
    if len(parts) == 1:
        return parts[0].arrays
    return {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
