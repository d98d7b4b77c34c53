"""Task metrics: accuracy, cosine, edit distance, word error rate, detection, user-defined ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qtool.calib.datasets.python_function import imported
from qtool.calib.specs import Array
from qtool.errors import InputError, UsageError
from qtool.llm.perplexity_meter import PerplexityMeter
from qtool.metrics.detection import DetectionMeter
from qtool.metrics.judged_batch import Batch, MetricMeter, called_with
from qtool.metrics.text_scores import WordErrorMeter, edit_accuracy

Score: TypeAlias = Callable[[Batch], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A task metric.

    Attributes:
        name: its name.
        start: makes the meter of one model.
        needs_labels: whether it needs labels.
        owns_labels: whether it has its own label format instead of class indices.
        lower_is_better: whether it counts errors.
    """

    name: str
    start: Callable[[], MetricMeter]
    needs_labels: bool = False
    owns_labels: bool = False
    lower_is_better: bool = False


class MeanMeter:
    """Averages scores of samples."""

    def __init__(self, score: Score) -> None:
        """Takes what returns one number per sample, (rows,)."""
        self._score = score
        self._sum = 0.0
        self._samples = 0

    def add(self, batch: Batch) -> None:
        """Adds one batch.

        Raises:
            InputError: the metric does not fit the outputs or the labels.
        """
        self._sum += float(self._score(batch).sum())
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
    if text in METRICS:
        return METRICS[text]
    kind, _, function = text.partition(":")
    if kind in _READ_BY_FUNCTIONS and ":" in function:
        read = partial(_READ_BY_FUNCTIONS[kind], function, imported(function))
        return Metric(name=kind, start=read, owns_labels=True, lower_is_better=METRICS[kind].lower_is_better)
    if function:
        return Metric(name=text, start=partial(MeanMeter, _of_function(text, imported(text))), owns_labels=True)
    near = difflib.get_close_matches(text, METRICS, n=1, cutoff=0.0)[0]
    raise UsageError(
        f"there is no metric '{text}'",
        fix=f"did you mean '{near}'? all of them: {', '.join(METRICS)}, or pkg.module:function",
    )


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
    # Two zero vectors count as equal; a single one has no direction to compare.
    found[a.any(axis=1) | b.any(axis=1)] = 0.0
    np.divide((a * b).sum(axis=1), lengths, out=found, where=lengths > 0)
    return found


def _class_labels(batch: Batch, classes: int) -> npt.NDArray[np.int64]:
    labels = None if batch.labels is None else batch.labels.reshape(batch.rows, -1)
    if labels is None or labels.shape[1] != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            "the metric takes one class index per sample for labels", fix="name them with --labels, or store '_label'"
        )
    found = labels[:, 0].astype(np.int64)
    if found.size and not (found.min() >= 0 and found.max() < classes):
        raise InputError(
            f"a label is not a class: the output has {classes}, 0 to {classes - 1}", fix="check the labels"
        )
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
    wanted = "takes the outputs by name and the labels, and returns one number per sample"

    def score(batch: Batch) -> npt.NDArray[np.float64]:
        returned = called_with(name, function, dict(batch.outputs), batch.labels, wanted=wanted)
        try:
            scores = np.asarray(returned, np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} returns no numbers", fix=f"correct it: it {wanted}") from error
        if scores.shape != (batch.rows,) or not np.isfinite(scores).all():
            raise InputError(
                f"{name} returns an array of the shape {scores.shape} for {batch.rows} samples, or not only numbers",
                fix="return one finite number a sample, higher for a better one",
            )
        return scores

    return score


METRICS: Mapping[str, Metric] = {
    "top1": Metric(name="top1", start=partial(MeanMeter, _top(1)), needs_labels=True),
    "top5": Metric(name="top5", start=partial(MeanMeter, _top(5)), needs_labels=True),
    "cosine": Metric(name="cosine", start=partial(MeanMeter, _cosine)),
    "edit": Metric(name="edit", start=partial(MeanMeter, edit_accuracy), owns_labels=True),
    "wer": Metric(name="wer", start=partial(WordErrorMeter, "wer"), owns_labels=True, lower_is_better=True),
    "perplexity": Metric(name="perplexity", start=PerplexityMeter, owns_labels=True, lower_is_better=True),
    "detection": Metric(name="detection", start=partial(DetectionMeter, "detection"), owns_labels=True),
}

# Metrics that a function may read the outputs for.
_READ_BY_FUNCTIONS: Mapping[str, Callable[[str, Callable[..., Any]], MetricMeter]] = {
    "wer": WordErrorMeter,
    "detection": DetectionMeter,
}
