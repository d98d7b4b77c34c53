"""Detection accuracy, against labels or against the detections of the float model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qtool.calib.specs import Array
from qtool.errors import InputError
from qtool.metrics.average_precision import PrecisionMeter
from qtool.metrics.box_layouts import BoxReader, box_reader
from qtool.metrics.boxes import Boxes
from qtool.metrics.judged_batch import Batch, called_with

# The usual default threshold of detectors.
_SURE = 0.25
_LABEL_COLUMNS = 5
_FOUND_COLUMNS = 6


class DetectionMeter:
    """Computes the mean average precision of one model."""

    def __init__(self, name: str, function: Callable[..., Any] | None = None) -> None:
        """Starts with nothing seen.

        Args:
            name: what errors call the function.
            function: returns an array of (x, y, x, y, score, class) rows for each sample, given a batch's outputs by
                name; without one, the layout is inferred from shapes and values.
        """
        self._read: BoxReader | None = None if function is None else _by_function(name, function)
        self._precision = PrecisionMeter()

    def add(self, batch: Batch) -> None:
        """Adds one batch.

        Raises:
            InputError: there are no boxes in the outputs, or the labels are not boxes.
        """
        if self._read is None:
            self._read = box_reader(batch.reference, batch.inputs, batch.rows)
        found = self._read(batch.outputs, batch.rows)
        if batch.labels is not None:
            truths = _labelled(batch.labels)
        else:
            truths = [boxes.where(boxes.scores >= _SURE) for boxes in self._read(batch.reference, batch.rows)]
        for own, truth in zip(found, truths, strict=True):
            self._precision.add(own, truth)

    def result(self) -> float:
        """Returns the mean average precision so far.

        Raises:
            InputError: there was no object to find.
        """
        if not self._precision.truths:
            raise InputError(
                "the metric 'detection' has nothing to find: there is no object in the data",
                fix="give data with objects, normalized as the model takes it",
            )
        return self._precision.result()


def _labelled(labels: Array) -> list[Boxes]:
    if labels.ndim != 3 or labels.shape[2] != _LABEL_COLUMNS or labels.dtype.kind not in "iuf":
        raise InputError(
            f"the metric 'detection' takes labels of the shape (samples, objects, 5), these are {labels.dtype} "
            f"{labels.shape}",
            fix="store (x, y, x, y, class) for each object, in the outputs' unit, padded with class -1",
        )
    rows = [row[row[:, 4] >= 0] for row in labels]
    return [Boxes.of(row[:, :4], np.ones(len(row)), row[:, 4]) for row in rows]


def _by_function(name: str, function: Callable[..., Any]) -> BoxReader:
    wanted = "takes the outputs by name and returns an array of (x, y, x, y, score, class) rows for each sample"

    def read(outputs: Any, rows: int) -> list[Boxes]:
        returned = called_with(name, function, dict(outputs), wanted=wanted)
        try:
            found = [np.asarray(entry, np.float64) for entry in returned]
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} returns no arrays of numbers", fix=f"correct it: it {wanted}") from error
        if len(found) != rows or any(entry.size and entry.shape[1:] != (_FOUND_COLUMNS,) for entry in found):
            shapes = ", ".join(str(entry.shape) for entry in found)
            raise InputError(
                f"{name} returns arrays of the shapes {shapes or 'of none'} for {rows} samples",
                fix=f"correct the function: it {wanted}",
            )
        tables = [entry.reshape(-1, _FOUND_COLUMNS) for entry in found]
        return [Boxes.of(table[:, :4], table[:, 4], table[:, 5]) for table in tables]

    return read
