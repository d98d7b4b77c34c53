"""Perplexity of language models, and how far a candidate is from the float model, with confidence intervals.

Perplexity is exp of the mean loss of the tokens that follow. The rise is exp of the mean difference of both models'
losses, less 1: paired token by token, so that how hard the text is cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.calib.specs import Array, Feed, TensorSpec
from qtool.errors import InputError
from qtool.llm.mean_interval import Estimate, mean_interval
from qtool.llm.token_scores import Values, logits_name, scored_tokens, token_losses, tokens_of
from qtool.runtime.running_model import RunningModel

# Rows are what intervals draw; fewer of them are drawn in parts.
_FEWEST_ROWS = 8
_SHORTEST_PART = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageScore:
    """What a text says of one model, and of it beside the float model.

    Attributes:
        perplexity: of the model.
        rise: how much higher its perplexity is than the float model's, as a share: 0.02 is 2 %.
        divergence: mean Kullback-Leibler divergence of its distributions from the float model's, in nats.
        same_token: share of positions at which both find the same token most likely.
    """

    perplexity: Estimate
    rise: Estimate
    divergence: Estimate
    same_token: Estimate


class LanguageMeter:
    """Compares a model's logits with the float model's, row by row; holds a few sums a row."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._losses, self._rises, self._divergences, self._same = (MeanMeter() for _ in range(4))

    def add(self, reference: Array, candidate: Array, tokens: Array) -> None:
        """Adds the logits of both models, (positions, vocabulary), on one row of tokens, (positions,).

        Raises:
            InputError: the shapes differ, or a token is not in the vocabulary.
        """
        scores = scored_tokens(reference, candidate, tokens)
        self._losses.add(scores.losses)
        self._rises.add(scores.losses - scores.reference_losses)
        self._divergences.add(scores.divergences)
        self._same.add(scores.same.astype(np.float64))

    def result(self) -> LanguageScore:
        """Returns the figures so far; there has to be a row."""
        return LanguageScore(
            perplexity=perplexity_of(self._losses),
            rise=self._rises.result().through(_rise),
            divergence=self._divergences.result().within(0.0, math.inf),
            same_token=self._same.result().within(0.0, 1.0),
        )


class MeanMeter:
    """Averages values of tokens; rows are the units of the interval, or parts of them where there are few."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._rows: list[tuple[Values, Values]] = []

    def add(self, values: Values) -> None:
        """Adds the values of one row."""
        parts = np.array_split(values, max(1, min(_FEWEST_ROWS, len(values) // _SHORTEST_PART)))
        self._rows.append((np.array([part.sum() for part in parts]), np.array([float(len(part)) for part in parts])))

    def result(self) -> Estimate:
        """Returns the mean so far; there has to be a value."""
        if len(self._rows) >= _FEWEST_ROWS:
            return mean_interval([sums.sum() for sums, _ in self._rows], [counts.sum() for _, counts in self._rows])
        sums, counts = (np.concatenate(each) for each in zip(*self._rows, strict=True))
        return mean_interval(sums, counts)


def perplexity_of(losses: MeanMeter) -> Estimate:
    """Returns the perplexity that losses in nats make."""
    return losses.result().through(_exp)


class HeldBackText:
    """Measures the rise of perplexity of one candidate after the other, each by one pass over a few rows.

    Of the float model, only the losses of the tokens are held, not its logits.
    """

    def __init__(self, reference: RunningModel, feeds: Iterable[Feed]) -> None:
        """Runs the float model.

        Args:
            reference: the float model.
            feeds: what it takes for rows of text, as ``DataRequest.feeds`` yields it; all of them are held.

        Raises:
            InputError: the model has no logits, the feeds hold no tokens, or there are none.
            RuntimeRefusedError: the model does not run.
        """
        self._feeds = tuple(feeds)
        if not self._feeds:
            raise InputError("there is no text to measure perplexity on", fix="give a longer text")
        self._logits = require_logits(reference.outputs)
        self._losses = tuple(self._of(reference, feed) for feed in self._feeds)

    @property
    def perplexity(self) -> float:
        """The perplexity of the float model."""
        return math.exp(float(np.concatenate([row for rows in self._losses for row in rows]).mean()))

    def rise(self, candidate: RunningModel) -> Estimate:
        """Returns how much higher the candidate's perplexity is, as a share (0.02 is 2 %), with its interval.

        Raises:
            InputError: the candidate has other outputs than the float model.
            RuntimeRefusedError: it does not run.
        """
        meter = MeanMeter()
        for feed, expected in zip(self._feeds, self._losses, strict=True):
            for losses, reference in zip(self._of(candidate, feed), expected, strict=True):
                meter.add(losses - reference)
        return meter.result().through(_rise)

    def _of(self, model: RunningModel, feed: Feed) -> list[Values]:
        logits = model.run(feed, [self._logits])[self._logits]
        return [token_losses(scores, row) for scores, row in zip(logits, require_tokens(feed), strict=True)]


def require_logits(outputs: Sequence[TensorSpec]) -> str:
    """Returns the output with the logits.

    Raises:
        InputError: there is none.
    """
    name = logits_name(outputs)
    if name is None:
        raise InputError(
            "the model has no output of logits, of the shape (rows, positions, vocabulary)",
            fix="give a language model; without text, `qtool report` compares any model",
        )
    return name


def require_tokens(feed: Feed) -> Array:
    """Returns the tokens that a feed holds, (rows, positions).

    Raises:
        InputError: there are none, or not in one array.
    """
    tokens = tokens_of(feed)
    if tokens is None:
        raise InputError(
            "the data has no tokens: no array of integers of the shape (rows, positions)",
            fix="call the input of tokens 'input_ids', or give text",
        )
    return tokens


def _exp(value: float) -> float:
    # A text of a hundred impossible tokens is not worth an error.
    return math.exp(value) if value < math.log(1e300) else math.inf


def _rise(value: float) -> float:
    return _exp(value) - 1.0
