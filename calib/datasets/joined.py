"""Several sources of samples, one behind the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qtool.calib.datasets.base import Dataset, Remark
from qtool.calib.errors import CalibError
from qtool.calib.specs import Array, TensorSpec


class JoinedData:
    """Gives the samples of the first source, then those of the next; no batch holds samples of two."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        """Joins ``parts``.

        Raises:
            CalibError: one that does not know how many samples it has is not the last.
        """
        self._parts = tuple(parts)
        if any(part.count is None for part in self._parts[:-1]):
            raise CalibError(
                "of several sources, one does not tell how many samples it has, and others stand behind it",
                fix="give at most one such source, such as a function, and give it last",
            )

    @property
    def count(self) -> int | None:
        """The number of samples in all, or None where the last source does not tell."""
        counts = [part.count for part in self._parts]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays of the first source; the others have to fit a model as well."""
        return self._parts[0].specs()

    def array(self, name: str) -> Array | None:
        """Loads an array of all sources, end to end; None where one of them has none of that name.

        Raises:
            CalibError: the array cannot be read, or has not one row per sample, or the sources do not fit together.
        """
        found = [array for part in self._parts if (array := part.array(name)) is not None]
        if len(found) < len(self._parts):
            return None
        if len({array.shape[1:] for array in found}) > 1:
            raise CalibError(f"the arrays '{name}' have rows of unlike shape", fix="store them in one form everywhere")
        return np.concatenate(found)

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Checks every source against ``inputs`` at once, then streams them in turn.

        Raises:
            CalibError: as the sources do.
        """
        streams = []
        for part in self._parts:
            if limit == 0:
                break
            count = part.count
            if count is not None and skip >= count:
                skip -= count
                continue
            streams.append(part.feeds(inputs, batch_size=batch_size, limit=limit, skip=skip, remark=remark))
            if limit is not None and count is not None:
                limit = max(limit - (count - skip), 0)
            skip = 0
        if not streams:
            raise CalibError("there are no samples left to use", fix="use fewer samples, or give more data")
        return (feed for stream in streams for feed in stream)
