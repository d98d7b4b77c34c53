"""Turns rows of tokens into what the graph of a decoder is fed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

Array = npt.NDArray[Any]


def rows_of_text(tokenizer: Path, text: Path, length: int) -> Array:
    """Returns the tokens of a text in rows of ``length``, without the rest at the end."""
    ids = Tokenizer.from_file(str(tokenizer)).encode(text.read_text(encoding="utf-8")).ids
    count = len(ids) // length
    return np.asarray(ids[: count * length], np.int64).reshape(count, length)


class DecoderFeeds:
    """What the graph of one decoder is fed, with or without caches of keys and values."""

    def __init__(self, session: ort.InferenceSession, head_size: int) -> None:
        """Looks at the graph's inputs; ``head_size`` is that of its caches, which need not tell it."""
        self._inputs = {node.name: node.shape for node in session.get_inputs()}
        self._head_size = head_size

    def first(self, row: Array) -> dict[str, Array]:
        """Returns the feed of ``row`` of (tokens,) where nothing came before: caches have no entries."""
        known = {
            "input_ids": row[None],
            "attention_mask": np.ones((1, len(row)), np.int64),
            "position_ids": np.arange(len(row), dtype=np.int64)[None],
        }
        return {
            name: known[name] if name in known else np.zeros((1, shape[1], 0, self._head_size), np.float32)
            for name, shape in self._inputs.items()
        }

    def next(self, outputs: Mapping[str, Array], token: int) -> dict[str, Array]:
        """Returns the feed of one more ``token`` after a run that gave ``outputs``."""
        feed = self.first(np.asarray([token], np.int64))
        caches = {name: outputs[name.replace("past_key_values", "present")] for name in feed if "past" in name}
        length = next(iter(caches.values())).shape[2] if caches else 0
        after = {"attention_mask": np.ones((1, length + 1), np.int64), "position_ids": np.asarray([[length]], np.int64)}
        return feed | caches | {name: value for name, value in after.items() if name in feed}
