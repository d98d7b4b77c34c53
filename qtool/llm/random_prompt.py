"""A prompt of random tokens, with empty caches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtool.calib.specs import Feed, TensorSpec
from qtool.errors import InputError
from qtool.llm.cached_feeds import DecoderInputs

_TOKENS = 32
# Where the logits do not tell how many tokens there are, every vocabulary has these.
_FEWEST = 256


def random_prompt(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Feed | None:
    """Returns the feed of some random tokens; None for a model that is no decoder with caches."""
    try:
        decoder = DecoderInputs.of(inputs, outputs)
    except InputError:
        return None
    if not decoder.caches:
        return None
    logits = next(spec for spec in outputs if spec.name == decoder.logits)
    last = logits.shape[-1] if logits.shape else None
    tokens = np.random.default_rng(0).integers(0, last if isinstance(last, int) else _FEWEST, _TOKENS)
    return decoder.prompt(tokens)
