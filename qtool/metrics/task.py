"""Scores of a model at its task: one number a sample, higher is better, their mean is the figure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from calib.datasets.python_function import imported
from calib.specs import Array
from qtool.errors import InputError, UsageError

_TEXT_AXES = 3
_BLANK = 0
_PADDING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a metric judges.

    Attributes:
        outputs: of the model that is judged.
        reference: of the float model.
        labels: one entry a sample; None without labels.
        rows: how many samples these are.
    """

    outputs: Mapping[str, Array]
    reference: Mapping[str, Array]
    labels: Array | None
    rows: int


Score: TypeAlias = Callable[[Batch], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A way to judge a model.

    Attributes:
        name: what it is called.
        score: returns one number a sample, (rows,).
        needs_labels: whether there is nothing to judge without labels.
        owns_labels: whether labels are in a form of its own, and no class indices.
    """

    name: str
    score: Score
    needs_labels: bool = False
    owns_labels: bool = False


class MetricMeter:
    """Averages the scores of one model, batch by batch."""

    def __init__(self, metric: Metric) -> None:
        """Starts with nothing seen."""
        self._metric = metric
        self._sum = 0.0
        self._samples = 0

    def add(self, batch: Batch) -> None:
        """Takes in one batch.

        Raises:
            InputError: the metric does not fit the outputs or the labels.
        """
        self._sum += float(self._metric.score(batch).sum())
        self._samples += batch.rows

    def result(self) -> float:
        """Returns the mean so far; there has to be a sample."""
        return self._sum / self._samples


def metric_named(text: str) -> Metric:
    """Returns the metric of METRICS with this name, or the function that it names.

    Raises:
        UsageError: there is no such metric.
        CalibError: there is no such function, or its module cannot be imported.
    """
    if ":" in text:
        return Metric(name=text, score=_of_function(text, imported(text)), owns_labels=True)
    if text not in METRICS:
        near = difflib.get_close_matches(text, METRICS, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"there is no metric '{text}'",
            fix=f"did you mean '{near}'? all of them: {', '.join(METRICS)}, or pkg.module:function",
        )
    return METRICS[text]


def edit_distance(left: Sequence[int], right: Sequence[int]) -> int:
    """Returns the fewest insertions, deletions and substitutions that make one sequence the other.

    Wagner and Fischer, The String-to-String Correction Problem, 1974.
    """
    before = list(range(len(right) + 1))
    for place, ours in enumerate(left, start=1):
        row = [place]
        for other, theirs in enumerate(right, start=1):
            row.append(min(before[other] + 1, row[-1] + 1, before[other - 1] + (ours != theirs)))
        before = row
    return before[-1]


def _top(count: int) -> Score:
    def score(batch: Batch) -> npt.NDArray[np.float64]:
        scores = _output(batch.outputs, batch.rows, axes=2, form="(samples, classes)")
        labels = _class_labels(batch, scores.shape[1])
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        before = np.arange(scores.shape[1])[None, :] < labels[:, None]
        rank = np.count_nonzero((scores > own) | ((scores == own) & before), axis=1)
        right: npt.NDArray[np.bool_] = (rank < count) & ~np.isnan(scores).any(axis=1)
        return right.astype(np.float64)

    return score


def _cosine(batch: Batch) -> npt.NDArray[np.float64]:
    name = _name(batch.reference, batch.rows, axes=None)
    if name is None or batch.outputs[name].shape != batch.reference[name].shape:
        raise InputError("no output holds one vector a sample in both models", fix="use another metric")
    a, b = (outputs[name].reshape(batch.rows, -1).astype(np.float64) for outputs in (batch.reference, batch.outputs))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: npt.NDArray[np.float64] = np.ones(batch.rows)
    # Two vectors of zeros are the same; one of them has no direction to agree on.
    found[a.any(axis=1) | b.any(axis=1)] = 0.0
    np.divide((a * b).sum(axis=1), lengths, out=found, where=lengths > 0)
    return found


def _edit(batch: Batch) -> npt.NDArray[np.float64]:
    texts = _decoded(batch.outputs, batch.rows)
    expected = _decoded(batch.reference, batch.rows) if batch.labels is None else _label_texts(batch.labels)
    return np.array([_similarity(text, other) for text, other in zip(texts, expected, strict=True)])


def _similarity(left: Sequence[int], right: Sequence[int]) -> float:
    longest = max(len(left), len(right))
    return 1 - edit_distance(left, right) / longest if longest else 1.0


def _decoded(outputs: Mapping[str, Array], rows: int) -> list[list[int]]:
    """Reads texts off scores, the best class at each step, without repetitions and blanks.

    Best-path decoding of Graves et al., Connectionist Temporal Classification, 2006, section 3.2.
    """
    best = _output(outputs, rows, axes=_TEXT_AXES, form="(samples, steps, classes)").argmax(axis=2)
    texts = []
    for row in best.tolist():
        fresh = [symbol for place, symbol in enumerate(row) if place == 0 or symbol != row[place - 1]]
        texts.append([symbol for symbol in fresh if symbol != _BLANK])
    return texts


def _label_texts(labels: Array) -> list[list[int]]:
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(
            f"the metric 'edit' takes labels of integers of the shape (samples, length), these are {labels.dtype} "
            f"{labels.shape}",
            fix="store the classes of each text in a row, with -1 behind shorter ones",
        )
    return [[symbol for symbol in row if symbol != _PADDING] for row in labels.tolist()]


def _class_labels(batch: Batch, classes: int) -> npt.NDArray[np.int64]:
    labels = None if batch.labels is None else batch.labels.reshape(batch.rows, -1)
    if labels is None or labels.shape[1] != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            "the metric takes one class index a sample for labels", fix="name them with --labels, or store '_label'"
        )
    found = labels[:, 0].astype(np.int64)
    if found.size and not (found.min() >= 0 and found.max() < classes):
        raise InputError(f"a label is no class: the output has {classes}, 0 to {classes - 1}", fix="check the labels")
    return found


def _output(outputs: Mapping[str, Array], rows: int, *, axes: int, form: str) -> Array:
    name = _name(outputs, rows, axes=axes)
    if name is None:
        raise InputError(f"the models have no float output of the shape {form}", fix="use another metric")
    return outputs[name]


def _name(outputs: Mapping[str, Array], rows: int, *, axes: int | None) -> str | None:
    for name, value in outputs.items():
        if value.dtype.kind == "f" and value.ndim == (axes or max(1, value.ndim)) and len(value) == rows:
            return name
    return None


def _of_function(name: str, function: Callable[..., Any]) -> Score:
    def score(batch: Batch) -> npt.NDArray[np.float64]:
        try:
            scores = np.asarray(function(dict(batch.outputs), batch.labels), np.float64)
        except Exception as error:  # the function is not ours: whatever it raises is named with it
            raise InputError(
                f"{name} raises {type(error).__name__}: {' '.join(str(error).split())}",
                fix="mend the function: it takes the outputs by name and the labels, and returns one number a sample",
            ) from error
        if scores.shape != (batch.rows,) or not np.isfinite(scores).all():
            raise InputError(
                f"{name} returns an array of the shape {scores.shape} for {batch.rows} samples, or not only numbers",
                fix="return one finite number a sample, higher for a better one",
            )
        return scores

    return score


METRICS: Mapping[str, Metric] = {
    "top1": Metric(name="top1", score=_top(1), needs_labels=True),
    "top5": Metric(name="top5", score=_top(5), needs_labels=True),
    "cosine": Metric(name="cosine", score=_cosine),
    "edit": Metric(name="edit", score=_edit, owns_labels=True),
}
