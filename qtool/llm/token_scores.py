"""What logits say of the tokens that follow: losses, divergence from another model, and the tokens chosen.

Logits of a row of text take more memory than most models (512 positions of 49152 tokens: 100 MB), so that they are
widened to float64 a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qtool.calib.datasets.text_file import role_of
from qtool.calib.specs import Array, Feed, TensorSpec
from qtool.errors import InputError

Values: TypeAlias = npt.NDArray[np.float64]

_CHUNK_VALUES = 1 << 21
_LOGITS_AXES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What two models make of one row of text; each of the shape (positions - 1,).

    Attributes:
        reference_losses: -log of the probability that the reference gives the token that follows, in nats.
        losses: that of the candidate.
        divergences: Kullback-Leibler divergence of the candidate's distribution from the reference's, in nats.
        same: whether both find the same token most likely.
    """

    reference_losses: Values
    losses: Values
    divergences: Values
    same: npt.NDArray[np.bool_]


def token_losses(logits: Array, tokens: Array) -> Values:
    """Returns -log p(token | those before it) in nats of every token but the first, (positions - 1,).

    Args:
        logits: (positions, vocabulary).
        tokens: (positions,).

    Raises:
        InputError: a token is not in the vocabulary.
    """
    follow = _following(logits, tokens)
    losses = [_losses(_log_softmax(logits[part]), follow[part]) for part in _parts(logits)]
    return np.concatenate([np.zeros(0), *losses])


def scored_tokens(reference: Array, candidate: Array, tokens: Array) -> TokenScores:
    """Compares the logits of two models on one row of text.

    Args:
        reference: (positions, vocabulary).
        candidate: of the same shape.
        tokens: (positions,).

    Raises:
        InputError: the shapes differ, or a token is not in the vocabulary.
    """
    if reference.shape != candidate.shape:
        raise InputError(
            f"the logits have the shapes {reference.shape} and {candidate.shape}",
            fix="compare models with the same vocabulary",
        )
    follow = _following(reference, tokens)
    found: list[tuple[Values, Values, Values, npt.NDArray[np.bool_]]] = []
    for part in _parts(reference):
        log_p, log_q = _log_softmax(reference[part]), _log_softmax(candidate[part])
        p = np.exp(log_p)
        # Tokens that the reference rules out count nothing, whatever the candidate says of them.
        with np.errstate(invalid="ignore"):
            terms = np.where(p == 0, 0.0, p * (log_p - log_q))
        # argmax takes a NaN for the largest, which agrees with nothing.
        same = (log_p.argmax(1) == log_q.argmax(1)) & ~np.isnan(log_q).any(1)
        found.append((_losses(log_p, follow[part]), _losses(log_q, follow[part]), terms.sum(1), same))
    losses_p, losses_q, divergences, same = (np.concatenate(each) for each in zip(*found, strict=True))
    return TokenScores(reference_losses=losses_p, losses=losses_q, divergences=divergences, same=same)


def logits_name(outputs: Sequence[TensorSpec]) -> str | None:
    """Returns the output with the logits, (rows, positions, vocabulary): 'logits', or the only one of three axes."""
    fitting = [
        spec.name
        for spec in outputs
        if spec.dtype.kind == "f" and (spec.shape is None or len(spec.shape) == _LOGITS_AXES)
    ]
    if "logits" in fitting:
        return "logits"
    return fitting[0] if len(fitting) == 1 else None


def tokens_of(feed: Feed) -> Array | None:
    """Returns the tokens that a feed holds, (rows, positions); None where it holds none, or there is a choice."""
    found = [
        value
        for name, value in feed.items()
        if value.ndim == 2 and role_of(TensorSpec(name, value.dtype, value.shape)) == "tokens"
    ]
    return found[0] if len(found) == 1 else None


def _following(logits: Array, tokens: Array) -> Array:
    """Returns the token after each position but the last, as indices."""
    if logits.ndim != 2 or len(logits) != len(tokens):
        raise InputError(
            f"the logits have the shape {logits.shape} for {len(tokens)} tokens of a row",
            fix="export the model with the logits of all positions",
        )
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < logits.shape[1]):
        raise InputError(
            f"the text has a token {int(tokens.max())}, and the model's vocabulary has {logits.shape[1]}",
            fix="give the model's own tokenizer",
        )
    following: Array = tokens[1:].astype(np.int64)
    return following


def in_parts(positions: int, vocabulary: int) -> Iterator[slice]:
    """Yields the positions of a row a few at a time, as many as are widened at once."""
    rows = max(1, _CHUNK_VALUES // vocabulary)
    for first in range(0, positions, rows):
        yield slice(first, min(first + rows, positions))


def _parts(logits: Array) -> Iterator[slice]:
    return in_parts(len(logits) - 1, logits.shape[1])


def _log_softmax(logits: Array) -> Values:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def _losses(log_p: Values, following: Array) -> Values:
    losses: Values = -log_p[np.arange(len(following)), following]
    return losses
