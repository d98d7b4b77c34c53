"""The protocol of all kinds of calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from qtool.calib.specs import Array, TensorSpec

Remark: TypeAlias = Callable[[str], None]


class Dataset(Protocol):
    """Provides samples as feeds for a model, repeatedly, in the same order."""

    @property
    def count(self) -> int | None:
        """The number of samples, or None where it takes a full pass to know."""
        ...

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays as stored, where that is known without a model.

        The first axis holds the samples and is None; other lengths that differ between files are None too.
        An empty name stands for the only input of a one-input model (a bare ``.npy``, images).
        """
        ...

    def array(self, name: str) -> Array | None:
        """Loads one whole array, such as labels; None where the data has no array of that name.

        Raises:
            CalibError: the array cannot be read, or does not have one row per sample.
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
        """Checks the data against ``inputs`` immediately, then streams it batch by batch.

        A fixed first dimension of the inputs overrides a ``batch_size`` of 1. Never holds more than a few batches.

        Args:
            inputs: the model's inputs.
            batch_size: samples per feed; the last one may have fewer unless the model fixes the number.
            limit: use at most so many samples.
            skip: skip so many samples first.
            remark: receives one-line remarks, such as samples that do not fill a batch.

        Raises:
            CalibError: names, ranks, dimensions or types do not match, a value is NaN or infinite,
                or there are no samples; errors in the values are raised while iterating.
        """
        ...
