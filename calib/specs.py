"""The name, type and shape that a graph declares for a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qtool.calib.image_layout import Layout

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]
Dim: TypeAlias = int | str | None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Describes one input or output of a graph.

    Attributes:
        name: its name in the graph.
        dtype: the numpy dtype of its elements.
        shape: one entry per dimension: a length, the name of a free dimension, or None where unknown;
            None for the whole shape where even the rank is unknown.
        layout: of an image input, where its channels are; None where its shape tells, or it is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None
    layout: Layout | None = None


def samples_in(feed: Feed) -> int:
    """Returns how many samples a feed holds: the length of all arrays' first axis; 1 where these lengths differ."""
    lengths = {array.shape[0] if array.ndim else None for array in feed.values()}
    length = lengths.pop() if len(lengths) == 1 else None
    return 1 if length is None else int(length)


def batch_length(feed: Feed) -> int:
    """Returns the length of the first axis of a feed's first array; 1 where that has none."""
    first = next(iter(feed.values()))
    return int(first.shape[0]) if first.ndim else 1
