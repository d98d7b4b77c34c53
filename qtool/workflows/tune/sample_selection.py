"""Picks the samples that a search judges by: a few, from all over the data, that fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qtool.calib.specs import Feed

# Inputs are held as long as the search lasts.
_LARGEST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ChosenSamples:
    """Holds some samples.

    Attributes:
        feeds: the batches that they are in.
        rows: their numbers among the samples they were chosen from, from 0.
        batches: the numbers of the batches, from 0.
    """

    feeds: tuple[Feed, ...]
    rows: tuple[int, ...]
    batches: tuple[int, ...]


def spread_batches(feeds: Iterable[Feed], *, samples: int, available: int | None) -> ChosenSamples:
    """Returns batches with about ``samples`` samples in all, at least one batch.

    They are as far apart as the data allows, since data often comes sorted; the first ones, where nobody knows how many
    there are. No more are taken than 256 MB hold.

    Args:
        feeds: all batches, in order.
        samples: how many samples are wanted.
        available: how many there are, where that is known.
    """
    step = 1.0 if available is None else max(1.0, available / samples)
    chosen: list[Feed] = []
    rows: list[int] = []
    batches: list[int] = []
    size = gone = 0
    for number, feed in enumerate(feeds):
        count = _rows(feed)
        if gone >= len(rows) * step:
            size += sum(array.nbytes for array in feed.values())
            if chosen and size > _LARGEST_BYTES:
                break
            chosen.append(feed)
            rows.extend(range(gone, gone + count))
            batches.append(number)
        gone += count
        if len(rows) >= samples:
            break
    return ChosenSamples(tuple(chosen), tuple(rows), tuple(batches))


def _rows(feed: Feed) -> int:
    first = next(iter(feed.values()))
    return int(first.shape[0]) if first.ndim else 1
