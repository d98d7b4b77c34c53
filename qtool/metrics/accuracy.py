"""Top-1 and top-5 accuracy of classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array
from qtool.errors import InputError

_TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 and top-5 accuracy.

    Attributes:
        top1: share of samples, 0 to 1, whose highest score is that of the label.
        top5: share of samples whose label is among the five highest scores; None with five classes or fewer.
        samples: how many samples were evaluated.
    """

    top1: float
    top5: float | None
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChange:
    """The change of the samples of one class.

    Attributes:
        label: the class.
        samples: how many samples have this label.
        float_right: how many of them the float model classifies correctly.
        quantized_right: how many of them the quantized model classifies correctly.
    """

    label: int
    samples: int
    float_right: int
    quantized_right: int


class AccuracyMeter:
    """Compares scores with labels batch by batch, in the order of the labels."""

    def __init__(self, labels: Array, *, name: str = "labels") -> None:
        """Takes one class index per sample.

        Args:
            labels: integers of the shape (samples,) or (samples, 1).
            name: what errors call them.

        Raises:
            InputError: they are not class indices.
        """
        self._name = name
        self._labels = _checked(labels, name)
        self._seen = self._right = self._near = 0
        self._classes = 0
        self._samples_of = self._right_of = np.zeros(0, np.int64)

    def add(self, scores: Array) -> None:
        """Adds the scores, of the shape (rows, classes), of the next rows.

        Equal scores rank by index, as in ``argmax``; a row with a NaN is wrong.

        Raises:
            InputError: there are fewer labels than rows, or a label is not an index into the scores.
        """
        rows, self._classes = scores.shape
        labels = self._labels[self._seen : self._seen + rows]
        if len(labels) < rows:
            raise InputError(
                f"there are {len(self._labels)} {self._name}, and more samples than that",
                fix="store one label for each sample",
            )
        self._check_range(labels)
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        before = np.arange(self._classes)[None, :] < labels[:, None]
        rank = np.count_nonzero((scores > own) | ((scores == own) & before), axis=1)
        sound = ~np.isnan(scores).any(axis=1)
        right = (rank == 0) & sound
        self._right += int(np.count_nonzero(right))
        self._samples_of = _counted(self._samples_of, labels, self._classes)
        self._right_of = _counted(self._right_of, labels[right], self._classes)
        self._near += int(np.count_nonzero((rank < _TOP) & sound))
        self._seen += rows

    def result(self) -> Accuracy:
        """Returns the shares so far.

        Raises:
            InputError: there was no sample.
        """
        if not self._seen:
            raise InputError("there is no sample to evaluate", fix="give data with at least one sample")
        return Accuracy(
            top1=self._right / self._seen,
            top5=self._near / self._seen if self._classes > _TOP else None,
            samples=self._seen,
        )

    def changes_to(self, quantized: AccuracyMeter) -> tuple[ClassChange, ...]:
        """Returns the classes whose accuracy another model changes, the largest losses first."""
        changes = [
            ClassChange(
                label=label,
                samples=int(self._samples_of[label]),
                float_right=int(self._right_of[label]),
                quantized_right=int(quantized._right_of[label]),
            )
            for label in np.flatnonzero(self._right_of != quantized._right_of).tolist()
        ]
        return tuple(sorted(changes, key=lambda change: change.quantized_right - change.float_right))

    def _check_range(self, labels: npt.NDArray[np.int64]) -> None:
        outside = labels[(labels < 0) | (labels >= self._classes)]
        if outside.size == 0:
            return
        counts_from_one = self._labels.min() == 1 and self._labels.max() == self._classes
        raise InputError(
            f"the label {outside[0]} in '{self._name}' is not a class: the output has {self._classes}, "
            f"0 to {self._classes - 1}",
            fix="count the classes from 0: store labels - 1"
            if counts_from_one
            else "check that labels and model belong together",
        )


def _counted(before: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    counts = np.bincount(labels, minlength=max(classes, len(before)))
    counts[: len(before)] += before
    return counts.astype(np.int64)


def _checked(labels: Array, name: str) -> npt.NDArray[np.int64]:
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1:
        raise InputError(
            f"the labels '{name}' have the shape {labels.shape}",
            fix="store one class index per sample: labels.argmax(axis=1) where they are one-hot",
        )
    if flat.dtype.kind not in "iu":
        raise InputError(
            f"the labels '{name}' are {labels.dtype}", fix="store class indices as integers: labels.astype('int64')"
        )
    return flat.astype(np.int64)
