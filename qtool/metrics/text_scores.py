"""Metrics of recognized text, against labels or against the text of the float model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from qtool.calib.specs import Array
from qtool.errors import InputError
from qtool.metrics.judged_batch import Batch, called_with

Text: TypeAlias = Sequence[Hashable]

_STEP_AXES = 3
_TOKEN_AXES = 2
_BLANK = 0
_PADDING = -1


def edit_accuracy(batch: Batch) -> npt.NDArray[np.float64]:
    """Returns 1 less the edit distance over the length of the longer text, for each sample."""
    texts = _texts(batch.outputs, batch.rows)
    expected = _texts(batch.reference, batch.rows) if batch.labels is None else _symbol_labels(batch.labels, "edit")
    return np.array([_similarity(text, other) for text, other in zip(texts, expected, strict=True)])


class WordErrorMeter:
    """Computes the word error rate of one model: all edits over all words of the reference texts."""

    def __init__(self, name: str, function: Callable[..., Any] | None = None) -> None:
        """Starts with nothing seen.

        Args:
            name: what errors call the function.
            function: returns a text (a string, whose words count) or a list of words for each sample, given a batch's
                outputs by name; without one, every symbol that the outputs hold counts as a word.
        """
        self._read = _texts if function is None else _by_function(name, function)
        self._has_words = function is not None
        self._edits = self._words = 0

    def add(self, batch: Batch) -> None:
        """Adds one batch.

        Raises:
            InputError: the outputs hold no texts, or the labels are not texts.
        """
        if batch.labels is None:
            expected = self._read(batch.reference, batch.rows)
        elif self._has_words and batch.labels.dtype.kind == "U" and batch.labels.ndim == 1:
            expected = [text.split() for text in batch.labels.tolist()]
        else:
            expected = _symbol_labels(batch.labels, "wer")
        for text, other in zip(self._read(batch.outputs, batch.rows), expected, strict=True):
            self._edits += Levenshtein.distance(text, other)
            self._words += len(other)

    def result(self) -> float:
        """Returns the word error rate so far: 0 is best, and it may exceed 1.

        Raises:
            InputError: the references have no words.
        """
        if not self._words:
            raise InputError("the metric 'wer' has no words to compare with", fix="give data with texts in it")
        return self._edits / self._words


def _similarity(left: Text, right: Text) -> float:
    longest = max(len(left), len(right))
    return 1 - Levenshtein.distance(left, right) / longest if longest else 1.0


def _texts(outputs: Mapping[str, Array], rows: int) -> list[Text]:
    """Decodes texts from scores of symbols, or takes integers as symbols.

    From scores: the best class at each step, without repetitions and blanks, the best-path decoding of Graves et al.,
    Connectionist Temporal Classification, 2006, section 3.2.
    """
    scores = [value for value in outputs.values() if value.dtype.kind == "f" and value.ndim == _STEP_AXES]
    for value in scores:
        if len(value) == rows:
            return [_without_blanks(row) for row in value.argmax(axis=2).tolist()]
    for value in scores:
        # The order of axes that torch.nn.CTCLoss takes.
        if value.shape[1] == rows:
            return [_without_blanks(row) for row in value.argmax(axis=2).T.tolist()]
    for value in outputs.values():
        if value.dtype.kind in "iu" and value.ndim == _TOKEN_AXES and len(value) == rows:
            return _padded(value)
    raise InputError(
        "the models have no float output of the shape (samples, steps, classes) or (steps, samples, classes), and no "
        "integers (samples, length)",
        fix="use another metric, or a function: --metric wer:pkg.module:function returns each sample's text",
    )


def _without_blanks(symbols: Sequence[int]) -> list[int]:
    fresh = [symbol for place, symbol in enumerate(symbols) if place == 0 or symbol != symbols[place - 1]]
    return [symbol for symbol in fresh if symbol != _BLANK]


def _padded(values: Array) -> list[Text]:
    return [[symbol for symbol in row if symbol != _PADDING] for row in values.tolist()]


def _symbol_labels(labels: Array, metric: str) -> list[Text]:
    if labels.ndim != _TOKEN_AXES or labels.dtype.kind not in "iu":
        raise InputError(
            f"the metric '{metric}' takes labels of integers of the shape (samples, length), these are {labels.dtype} "
            f"{labels.shape}",
            fix="store the classes of each text in a row, padded with -1",
        )
    return _padded(labels)


def _by_function(name: str, function: Callable[..., Any]) -> Callable[[Mapping[str, Array], int], list[Text]]:
    wanted = "takes the outputs by name and returns a text or a list of words for each sample"

    def read(outputs: Mapping[str, Array], rows: int) -> list[Text]:
        found = called_with(name, function, dict(outputs), wanted=wanted)
        if not isinstance(found, Sequence) or len(found) != rows or isinstance(found, str):
            raise InputError(f"{name} does not return {rows} texts", fix=f"correct the function: it {wanted}")
        if not all(isinstance(text, Sequence) for text in found):
            raise InputError(f"{name} returns values that are not texts", fix=f"correct the function: it {wanted}")
        return [text.split() if isinstance(text, str) else list(text) for text in found]

    return read
