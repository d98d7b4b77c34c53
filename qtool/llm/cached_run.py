"""Runs decoders with a KV cache in onnxruntime, prompt first and then token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array
from qtool.llm.decoder_folder import DecoderFolder
from qtool.runtime.session import Session

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class CachedRun:
    """One text in a decoder, which grows."""

    def __init__(self, folder: DecoderFolder, session: Session) -> None:
        """Begins with empty caches."""
        self._folder, self._session = folder, session
        dtypes = {spec.name: spec.dtype for spec in session.inputs}
        empty = (1, folder.kv_heads, 0, folder.head_size)
        self._taken = frozenset(dtypes)
        self._cache: dict[str, Array] = {
            name: np.zeros(empty, dtypes[name]) for name in (*folder.past_keys, *folder.past_values) if name in dtypes
        }
        self._length = 0

    def feed(self, tokens: Tokens) -> Logits:
        """Returns the logits of ``tokens``, int64 (1, length), behind those before: float32 (1, length, vocabulary).

        Raises:
            RuntimeRefusedError: onnxruntime stops.
        """
        folder, begin = self._folder, self._length
        self._length += tokens.shape[1]
        feeds: dict[str, Array] = {folder.input_ids: tokens, **self._cache}
        if folder.attention_mask is not None:
            feeds[folder.attention_mask] = np.ones((1, self._length), np.int64)
        if folder.position_ids is not None:
            feeds[folder.position_ids] = np.arange(begin, self._length, dtype=np.int64)[np.newaxis]
        found = self._session.run({name: array for name, array in feeds.items() if name in self._taken})
        self._cache = {
            past: found[present]
            for past, present in zip(
                (*folder.past_keys, *folder.past_values), (*folder.present_keys, *folder.present_values), strict=True
            )
            if past in self._taken
        }
        return found[folder.logits].astype(np.float32)


def greedy_tokens(folder: DecoderFolder, session: Session, prompt: Sequence[int], count: int) -> list[int]:
    """Returns the ``count`` tokens that follow ``prompt`` where each is the likeliest, past ends of text too.

    Raises:
        RuntimeRefusedError: onnxruntime stops.
    """
    run = CachedRun(folder, session)
    logits = run.feed(np.asarray([prompt], np.int64))
    chosen = [int(logits[0, -1].argmax())]
    while len(chosen) < count:
        logits = run.feed(np.asarray([chosen[-1:]], np.int64))
        chosen.append(int(logits[0, -1].argmax()))
    return chosen
