"""Takes a few samples of real data to run a model on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qtool.calib.dataset import open_dataset
from qtool.calib.datasets.base import Dataset
from qtool.calib.datasets.batching import is_one_batch_axis
from qtool.calib.errors import CalibError, UnequalLengthsError
from qtool.calib.specs import Feed

# The size of the largest comparison.
SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleData:
    """Some samples, and the shapes of the data.

    Attributes:
        feeds: the samples by array name; an empty name stands for the only input.
        shapes: the shape of each array: ``batch`` first, and names for lengths that vary.
    """

    feeds: Feed
    shapes: dict[str, tuple[int | str, ...]]


def open_example_data(source: str, preprocess: str | None) -> Dataset:
    """Opens data, with ``preprocess`` as text.

    Raises:
        CalibError: there is no such data, or the text is wrong.
    """
    if preprocess is None:
        return open_dataset(source)
    from qtool.calib.datasets.images import Preprocess

    return open_dataset(source, preprocess=Preprocess.parse(preprocess))


def example_data(
    dataset: Dataset, input_shapes: Mapping[str, tuple[int | str, ...]] | None = None
) -> ExampleData | None:
    """Returns the first samples of every numeric array; None where the data has no array descriptions.

    Args:
        dataset: the data.
        input_shapes: shapes of the inputs, which distinguish whole inputs from rows of samples where the arrays do not.

    Raises:
        CalibError: the data has no samples, or holds NaN.
    """
    specs = [spec for spec in dataset.specs() if np.dtype(spec.dtype).kind in "fiub" and spec.shape]
    if not specs:
        return None
    try:
        feeds = next(iter(dataset.feeds(specs, batch_size=SAMPLES, limit=SAMPLES)))
    except UnequalLengthsError as error:
        whole = [replace(spec, shape=(input_shapes or {}).get(spec.name, spec.shape)) for spec in specs]
        if is_one_batch_axis(whole):
            fix = f"{error.fix}, or say with --input-shape which lengths are those of whole inputs"
            raise CalibError(error.problem, fix=fix) from error
        feeds = next(iter(dataset.feeds(whole, limit=1)))
    shapes = {
        spec.name: (
            "batch",
            *(
                f"{spec.name or 'input'}_dim{axis}" if dim is None else dim
                for axis, dim in enumerate(spec.shape or ())
                if axis
            ),
        )
        for spec in specs
    }
    return ExampleData(feeds=feeds, shapes=shapes)
