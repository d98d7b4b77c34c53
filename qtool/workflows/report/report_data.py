"""The datasets of a report: their sources, names and labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.calib.dataset import open_dataset
from qtool.calib.datasets.base import Dataset
from qtool.calib.datasets.images import Preprocess
from qtool.calib.datasets.text_file import TextFile, TextOptions
from qtool.calib.datasets.tokenizing import Tokenizer
from qtool.calib.specs import Array
from qtool.errors import UsageError
from qtool.metrics.task import Metric
from qtool.progress import Progress
from qtool.reporting.names import display_names

_USUAL_LABELS = "_label"
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)=(?P<source>.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Data to report on.

    Attributes:
        source: what ``open_dataset`` takes.
        name: its name in the report; None for the shortest distinctive part of the source.
    """

    source: str
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """Parses ``NAME=SOURCE``, or a source alone; an existing path is always a source alone."""
        found = _NAMED.fullmatch(text)
        if found is None or Path(text).exists():
            return cls(source=text)
        return cls(source=found["source"], name=found["name"])


@dataclass(frozen=True, slots=True)
class Labels:
    """One class index a sample.

    Attributes:
        name: the array that they come from.
        values: the class indices.
    """

    name: str
    values: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenData:
    """An opened dataset.

    Attributes:
        name: its name in the report.
        source: where it is, as it was given.
        data: its samples.
        labels: its labels; None where it has none.
        tokenizer: what makes tokens of it, where it is text; None for other data.
    """

    name: str
    source: str
    data: Dataset
    labels: Labels | None
    tokenizer: Tokenizer | None = None


def open_data(
    sources: Sequence[DataSource],
    *,
    preprocess: Preprocess | None,
    labels: str | None,
    metric: Metric | None,
    text: TextOptions | None = None,
) -> tuple[OpenData, ...]:
    """Opens every dataset without reading its samples.

    Args:
        sources: where they are, at least one.
        preprocess: how images become arrays.
        labels: the array with class indices; None takes ``_label`` where a dataset has it.
        metric: the metric of the models' task, if any.
        text: how text becomes tokens; None where no tokenizer is known.

    Raises:
        UsageError: two have the same name, or one lacks requested labels or those that the metric needs.
        CalibError: there is no such data.
    """
    usual = display_names([Path(entry.source) for entry in sources])
    names = [entry.name or name for entry, name in zip(sources, usual, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two datasets are called '{name}'", fix="give each its own name: --data NAME=DATA")
    found = []
    for name, entry in zip(names, sources, strict=True):
        data = open_dataset(entry.source, preprocess=preprocess, text=text)
        own = _labels_of(data, labels, where=entry.source)
        if metric is not None and metric.needs_labels and own is None:
            raise UsageError(
                f"the metric '{metric.name}' needs labels and {entry.source} has none",
                fix="name the array of class indices with --labels, or store it as '_label'",
            )
        tokenizer = data.tokenizer if isinstance(data, TextFile) else None
        found.append(OpenData(name=name, source=entry.source, data=data, labels=own, tokenizer=tokenizer))
    return tuple(found)


def refuse_labels(labels: Labels, *, given: bool, progress: Progress) -> None:
    """Reports that no output can be compared with the labels.

    Raises:
        UsageError: they were requested.
    """
    why = "the models have no float output of the shape (samples, classes)"
    if given:
        raise UsageError(f"labels were given, but {why}", fix="leave --labels out")
    progress.note(f"the labels '{labels.name}' are not used: {why}")


def _labels_of(data: Dataset, asked: str | None, *, where: str) -> Labels | None:
    """Returns the requested labels, or those with the default name, if any."""
    name = asked or _USUAL_LABELS
    values = data.array(name)
    if values is not None:
        return Labels(name, values)
    if asked is None:
        return None
    known = ", ".join(spec.name for spec in data.specs() if spec.name) or "none by name"
    raise UsageError(
        f"{where} has no array '{name}' to take labels from",
        fix=f"store one class index per sample under this name (arrays it has: {known})",
    )
