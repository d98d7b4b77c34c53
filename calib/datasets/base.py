"""What every kind of data can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from qtool.calib.specs import Array, TensorSpec

Remark: TypeAlias = Callable[[str], None]


class Dataset(Protocol):
    """Gives samples as feeds for a model, again and again, in the same order."""

    @property
    def count(self) -> int | None:
        """The number of samples, or None where only a full pass would tell."""
        ...

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays as stored, where that is known without a model.

        The first axis holds the samples and is None; other lengths that differ between files are None too.
        An empty name stands for the only input of a one-input model (a bare ``.npy``, images).
        """
        ...

    def array(self, name: str) -> Array | None:
        """Loads one whole array, such as labels; None where this kind of data has no array of that name.

        Raises:
            CalibError: the array cannot be read, or has not one row a sample.
        """
        ...

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Checks the data against ``inputs`` at once, then streams it batch by batch.

        A fixed first dimension of the inputs wins over a ``batch_size`` of 1. Never holds more than a few batches.

        Args:
            inputs: what the model wants to be fed.
            batch_size: samples a feed; the last one may have fewer unless the model fixes the number.
            limit: use at most so many samples.
            skip: leave out so many samples first.
            remark: receives one-line remarks, such as samples that fill no whole batch.

        Raises:
            CalibError: names, ranks, dimensions or types do not match, a value is NaN or infinite,
                or there are no samples; what only the values tell is raised while iterating.
        """
        ...
