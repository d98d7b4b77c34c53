"""Perplexity as a task metric: of any model with logits, on data that holds tokens."""

from __future__ import annotations

import math

import numpy as np

from qtool.calib.specs import Array, TensorSpec
from qtool.errors import InputError
from qtool.llm.perplexity import MeanMeter, perplexity_of, require_tokens
from qtool.llm.token_scores import Values, logits_name, token_losses
from qtool.metrics.judged_batch import Batch


class PerplexityMeter:
    """Computes exp of the mean loss of each token given those before it; tokens that a mask leaves out do not count."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._losses = MeanMeter()
        self._seen = False

    def add(self, batch: Batch) -> None:
        """Adds one batch.

        Raises:
            InputError: the model has no logits, or the data no tokens.
        """
        outputs = [TensorSpec(name, value.dtype, value.shape) for name, value in batch.outputs.items()]
        name = logits_name(outputs)
        if name is None:
            raise InputError(
                "the models have no float output of the shape (samples, positions, vocabulary)",
                fix="use another metric",
            )
        tokens = require_tokens(batch.inputs)
        for logits, row, kept in zip(batch.outputs[name], tokens, _kept(batch, tokens), strict=True):
            losses: Values = token_losses(logits, row)[kept]
            if len(losses):
                self._losses.add(losses)
                self._seen = True

    def result(self) -> float:
        """Returns the perplexity so far; NaN without a token to predict."""
        return perplexity_of(self._losses).value if self._seen else math.nan


def _kept(batch: Batch, tokens: Array) -> Array:
    """Returns which tokens but the first count, (rows, positions - 1): those that are there, after one that is."""
    for name, value in batch.inputs.items():
        if "mask" in name.lower() and value.shape == tokens.shape:
            there: Array = value.astype(bool)
            return there[:, 1:] & there[:, :-1]
    return np.ones((len(tokens), tokens.shape[1] - 1), bool)
