"""Selects the samples that a search evaluates on: a few, spread over the data, that fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qtool.calib.specs import Feed, batch_length

# Inputs are held during the whole search.
_LARGEST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ChosenSamples:
    """Selected samples.

    Attributes:
        feeds: their batches.
        rows: their numbers among all samples, from 0.
        batches: the numbers of the batches, from 0.
    """

    feeds: tuple[Feed, ...]
    rows: tuple[int, ...]
    batches: tuple[int, ...]


NOTHING_CHOSEN = ChosenSamples((), (), ())


def spread_batches(feeds: Iterable[Feed], *, samples: int, available: int | None) -> ChosenSamples:
    """Returns batches with about ``samples`` samples in all, at least one batch.

    They are spread evenly, since data is often sorted; where the number of samples is unknown, the first ones are
    taken. They take 256 MB at most.

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
        count = batch_length(feed)
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
