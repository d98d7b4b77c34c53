"""One of several parts that data is divided into, which run apart from each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qtool.calib.errors import CalibError

_TEXT = re.compile(r"(\d+)/(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the data, written ``3/8``.

    Attributes:
        number: which part, from 1.
        count: how many parts there are.
    """

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Reads ``NUMBER/COUNT``.

        Raises:
            CalibError: it is something else, or there is no such part.
        """
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise CalibError(f"'{text}' is no shard", fix="write which one of how many, from 1: --shard 3/8")
        number, count = int(found[1]), int(found[2])
        if not 1 <= number <= count:
            raise CalibError(
                f"there is no shard {number} of {count}", fix=f"number shards from 1/{count} to {count}/{count}"
            )
        return Shard(number, count)

    def __str__(self) -> str:
        """Returns the text that ``parse`` reads."""
        return f"{self.number}/{self.count}"

    @property
    def is_everything(self) -> bool:
        """Whether there is no other part."""
        return self.count == 1

    def share(self, items: int) -> range:
        """Returns which of so many items belong to this part: as many as to any other, or one less."""
        return range(items * (self.number - 1) // self.count, items * self.number // self.count)


EVERYTHING = Shard(1, 1)
