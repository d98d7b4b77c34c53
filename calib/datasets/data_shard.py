"""The part of the data that one of several runs takes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from qtool.calib.datasets.base import Dataset, Remark
from qtool.calib.datasets.batching import fixed_batch_size
from qtool.calib.datasets.joined import JoinedData
from qtool.calib.shard import EVERYTHING, Shard
from qtool.calib.specs import Array, Feed, TensorSpec

_HASH_BITS = 256


class Seen:
    """A hash of batches and their numbers, the same in whatever order and parts they come.

    It is the sum of the SHA-256 of every batch, modulo 2^256: hashes of parts add up to the hash of all.
    """

    def __init__(self, value: int = 0) -> None:
        """Begins with the hash of nothing, or with ``value``."""
        self._value = value

    @staticmethod
    def parse(text: str) -> Seen:
        """Reads what ``str`` gives.

        Raises:
            ValueError: it is something else.
        """
        return Seen(int(text, 16))

    def __str__(self) -> str:
        """Returns the hash in hex."""
        return f"{self._value:064x}"

    def add(self, number: int, feed: Feed) -> None:
        """Adds a batch by its number in the data."""
        digest = hashlib.sha256(str(number).encode())
        for name in sorted(feed):
            array = np.ascontiguousarray(feed[name])
            digest.update(f"\x1f{name}\x1f{array.dtype}\x1f{array.shape}\x1f".encode())
            digest.update("\x1f".join(map(str, array.flat)).encode() if array.dtype.hasobject else array.data)
        self._put(int.from_bytes(digest.digest(), "big"))

    def merge(self, other: Seen) -> None:
        """Adds the batches of ``other``, none of which is in this one."""
        self._put(other._value)

    def without(self, other: Seen) -> Seen:
        """Returns the hash of the batches that are not in ``other``, all of which are in this one."""
        return Seen((self._value - other._value) % (1 << _HASH_BITS))

    def copy(self) -> Seen:
        """Returns the hash as it is now."""
        return Seen(self._value)

    def _put(self, value: int) -> None:
        self._value = (self._value + value) % (1 << _HASH_BITS)


class DataShard:
    """Gives the batches of one shard, which are those that the whole data would give, and notes what it gave.

    Where the data knows how many samples it has, and all make batches of one size, a shard reads only its own part, one
    stretch of the data. Otherwise it reads everything, and takes every so many-th batch.

    Attributes:
        seen: the hash of the batches given.
        batch_size: samples per batch.
        numbers: the numbers, in the whole data and from 0, of the batches that it gives.
        samples: how many samples it gives; None where that takes a pass to know.
    """

    def __init__(self, dataset: Dataset, shard: Shard = EVERYTHING) -> None:
        """Takes a part of ``dataset``."""
        self._dataset, self._shard = dataset, shard
        self.seen = Seen()
        self.batch_size = 1
        self.numbers = range(0)
        self.samples: int | None = None

    @property
    def is_everything(self) -> bool:
        """Whether there is no other shard."""
        return self._shard.is_everything

    @property
    def count(self) -> int | None:
        """How many samples the whole data has; None where that takes a pass to know."""
        return self._dataset.count

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays of the data."""
        return self._dataset.specs()

    def array(self, name: str) -> Array | None:
        """Loads an array of all of the data; see ``Dataset.array``."""
        return self._dataset.array(name)

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Streams the shard's batches, none where it has none; ``limit`` and ``skip`` are of the whole data.

        Raises:
            CalibError: as the data does.
        """
        whole = self._dataset.feeds(inputs, batch_size=batch_size, limit=limit, skip=skip, remark=remark)
        fixed = None if self._has_whole_values(inputs) else fixed_batch_size(inputs)
        size = self.batch_size = batch_size if fixed is None else fixed
        total = self._dataset.count
        samples = None if total is None else total - skip if limit is None else min(limit, total - skip)
        if self._shard.is_everything:
            self.numbers, self.samples = range(sys.maxsize), samples
            return self._noted(whole)
        if samples is None or isinstance(self._dataset, JoinedData):
            first, step = self._shard.number - 1, self._shard.count
            self.numbers, self.samples = range(first, sys.maxsize, step), None
            return self._noted(islice(whole, first, None, step))
        self.numbers = self._shard.share(-(-samples // size) if fixed is None else samples // size)
        first = self.numbers.start * size
        self.samples = max(min(self.numbers.stop * size, samples) - first, 0)
        if not self.numbers:
            return iter(())
        part = self._dataset.feeds(inputs, batch_size=batch_size, limit=self.samples, skip=skip + first)
        return self._noted(part)

    def _has_whole_values(self, inputs: Sequence[TensorSpec]) -> bool:
        """Tells whether samples hold the whole value of an input, and so run one by one."""
        stored = {spec.name: len(spec.shape) for spec in self.specs() if spec.shape is not None}
        return any(
            stored.get(spec.name, stored.get("")) == len(spec.shape) + 1 for spec in inputs if spec.shape is not None
        )

    def _noted(self, feeds: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        for feed, number in zip(feeds, self.numbers, strict=False):
            self.seen.add(number, feed)
            yield feed
