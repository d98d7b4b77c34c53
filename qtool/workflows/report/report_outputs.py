"""The pass over the data in which a report's models run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qtool.calib.datasets.base import Dataset
from qtool.calib.datasets.batching import fixed_batch_size
from qtool.calib.errors import WholeFeedError
from qtool.calib.specs import Array, Feed, TensorSpec, samples_in
from qtool.errors import InputError
from qtool.llm.mean_interval import Estimate
from qtool.llm.perplexity import LanguageScore
from qtool.metrics.accuracy import Accuracy, AccuracyMeter, ClassChange
from qtool.metrics.changed_samples import ChangedSample, SampleMeter
from qtool.metrics.fidelity import FidelityMeter, OutputFidelity
from qtool.metrics.judged_batch import Batch
from qtool.metrics.session_group import SessionGroup
from qtool.metrics.task import Metric
from qtool.progress import Progress
from qtool.workflows.report.report_data import OpenData

_USUAL_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSeen:
    """What a text adds to the result of the pass.

    Attributes:
        perplexities: of each model, the float model's first.
        scores: of each other model beside the float model that it is compared with.
        predicted: how many tokens were predicted.
        prompt_tokens: tokens of the prompt that is timed, which is ``Seen.batch``.
        cached_tokens: tokens in the cache of the step that is timed, which is ``Seen.sample``.
        logits: the output that is timed: caches would not be copied, where a model is used.
    """

    perplexities: tuple[Estimate, ...]
    scores: tuple[LanguageScore, ...]
    predicted: int
    prompt_tokens: int
    cached_tokens: int
    logits: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The result of the pass.

    Attributes:
        fidelity: how close the outputs of each quantized model are to those of the float model.
        accuracy: of each model, the float model's first; empty without labels, or without scores to compare them with.
        metric: the score of each model, the float model's first; empty without a metric.
        classes: what changes for each class, by quantized model; each empty without accuracy.
        changed: the samples that changed most, by quantized model.
        samples: how many samples there were.
        sample: one of them, to time the models on.
        batch: the first batch, to time the models on.
        text: what there is besides where the data is text; None for other data.
    """

    fidelity: tuple[tuple[OutputFidelity, ...], ...]
    accuracy: tuple[Accuracy, ...]
    metric: tuple[float, ...]
    classes: tuple[tuple[ClassChange, ...], ...]
    changed: tuple[tuple[ChangedSample, ...], ...]
    samples: int
    sample: Feed
    batch: Feed
    text: TextSeen | None = None

    @property
    def alike(self) -> bool:
        """Whether the sample and the batch take the same time."""
        return self.sample is self.batch or (self.text is None and samples_in(self.sample) == samples_in(self.batch))

    @property
    def whole(self) -> Feed:
        """What a fresh process runs on: a sample, or a prompt."""
        return self.sample if self.text is None else self.batch

    @property
    def timed_outputs(self) -> tuple[str, ...] | None:
        """The outputs that timed runs return; None for all."""
        return None if self.text is None else (self.text.logits,)


def run_over(
    group: SessionGroup,
    opened: OpenData,
    metric: Metric | None,
    *,
    references: Sequence[int],
    batch_size: int,
    limit: int | None,
    progress: Progress,
) -> Seen:
    """Runs every model on every batch; holds the outputs of one model, of float models and one batch at a time.

    Args:
        group: the models, a float model first.
        opened: the data.
        metric: the metric of the models' task, if any.
        references: of each model the place of the one that it is compared with, which stands before it.
        batch_size: samples per run.
        limit: use only the first so many samples.
        progress: receives the steps.

    Raises:
        InputError: there are no samples, or the labels do not fit.
        RuntimeRefusedError: onnxruntime stops while it runs a model.
        CalibError: the data does not fit the models.
    """
    data, labels = opened.data, opened.labels
    fidelity = [FidelityMeter() for _ in range(group.count - 1)]
    changed = [SampleMeter() for _ in fidelity]
    accuracy: list[AccuracyMeter] = []
    scores = [metric.start() for _ in range(group.count)] if metric is not None else []
    class_labels = None if metric is not None and metric.owns_labels else labels
    classes: str | None = None
    batch: Feed | None = None
    samples = 0
    feeds = data.feeds(group.inputs, batch_size=batch_size, limit=limit, remark=progress.note)
    with progress.task("comparing outputs", total_samples(data.count, limit)) as advance:
        for feed in feeds:
            runs = group.runs(feed)
            expected = next(runs)
            expected_by_place = {0: expected}
            if batch is None:
                batch = feed
                classes = None if class_labels is None else _classes_output(expected)
                if class_labels is not None and classes is not None:
                    accuracy = [AccuracyMeter(class_labels.values, name=class_labels.name) for _ in range(group.count)]
            own_labels = None if labels is None else labels.values[samples : samples + samples_in(feed)]
            if scores:
                scores[0].add(_judged(expected, expected, own_labels, feed))
            if classes is not None:
                accuracy[0].add(expected[classes])
            for place, got in enumerate(runs):
                reference = expected_by_place[references[place + 1]]
                fidelity[place].add(reference, got)
                changed[place].add(feed, reference, got)
                if place + 1 in references:
                    expected_by_place[place + 1] = got
                if scores:
                    scores[place + 1].add(_judged(got, reference, own_labels, feed))
                if classes is not None:
                    accuracy[place + 1].add(got[classes])
            samples += samples_in(feed)
            advance(samples_in(feed))
    if batch is None:
        raise InputError("the data has no samples", fix="give data with at least one sample")
    return Seen(
        fidelity=tuple(meter.results() for meter in fidelity),
        accuracy=tuple(meter.result() for meter in accuracy),
        metric=tuple(meter.result() for meter in scores),
        classes=tuple(
            accuracy[reference].changes_to(meter)
            for reference, meter in zip(references[1:], accuracy[1:], strict=bool(accuracy))
        )
        if accuracy
        else ((),) * len(fidelity),
        changed=tuple(meter.result() for meter in changed),
        samples=samples,
        sample=next(data.feeds(group.inputs, batch_size=1)),
        batch=batch,
    )


def usual_batch_size(inputs: Sequence[TensorSpec], datasets: Sequence[Dataset]) -> int:
    """Returns the default batch size: the model's, or a few samples.

    Where the arrays of a dataset are whole inputs that cannot be divided, it is one.

    Raises:
        CalibError: the data does not fit the inputs.
    """
    fixed = fixed_batch_size(inputs)
    if fixed is not None:
        return fixed
    try:
        for dataset in datasets:
            next(iter(dataset.feeds(inputs, batch_size=2, limit=2)), None)
    except WholeFeedError:
        return 1
    return _USUAL_BATCH_SIZE


def _judged(outputs: Feed, reference: Feed, labels: Array | None, feed: Feed) -> Batch:
    return Batch(outputs=outputs, reference=reference, inputs=feed, labels=labels, rows=samples_in(feed))


def _classes_output(outputs: Feed) -> str | None:
    """Returns the first output that looks like one score per class."""
    for name, value in outputs.items():
        if value.ndim == 2 and value.shape[1] >= 2 and np.issubdtype(value.dtype, np.floating):
            return name
    return None


def total_samples(count: int | None, limit: int | None) -> int | None:
    """Returns how many samples there are to run on, as far as that is known."""
    return limit if count is None else min(count, limit or count)
