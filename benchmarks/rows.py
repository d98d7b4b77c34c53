"""Turns the rows of stored arrays, or of texts, into what a model is fed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Array = npt.NDArray[Any]
# Samples a run where the model leaves the number open.
BATCH = 16


class Rows:
    """Holds one array for each input of a model, one row a sample.

    An array with the rank of its input has samples as rows; one with a rank more has the input's whole value in each
    row, such as a state or a scalar, so that rows are fed one by one.
    """

    def __init__(self, session: ort.InferenceSession, arrays: Mapping[str, Array]) -> None:
        """Takes the arrays that ``session`` has an input for."""
        specs = {node.name: node.shape for node in session.get_inputs() if node.name in arrays}
        self._arrays = {name: arrays[name] for name in specs}
        self._whole = {name for name, shape in specs.items() if arrays[name].ndim == len(shape) + 1}
        fixed = [shape[0] for shape in specs.values() if shape and isinstance(shape[0], int)]
        self._fixed = fixed[0] if fixed and not self._whole else None
        self.batch = 1 if self._whole else self._fixed or BATCH

    @staticmethod
    def read(session: ort.InferenceSession, path: Path) -> Rows:
        """Takes the arrays of an ``.npz`` file."""
        with np.load(path) as file:
            return Rows(session, {name: file[name] for name in file.files})

    def one(self) -> dict[str, Array]:
        """Returns the smallest feed, that of one sample where the model takes a single one."""
        return self._feed(0, self._fixed or 1)

    def singles(self) -> Iterator[dict[str, Array]]:
        """Yields the smallest feeds, one after the other."""
        yield from self._feeds(self._fixed or 1)

    def batches(self) -> Iterator[dict[str, Array]]:
        """Yields feeds of ``batch`` samples; the last may be smaller where the model takes that."""
        yield from self._feeds(self.batch)

    def _feeds(self, size: int) -> Iterator[dict[str, Array]]:
        count = len(next(iter(self._arrays.values())))
        for first in range(0, count if self._fixed is None else count - count % self._fixed, size):
            yield self._feed(first, size)

    def _feed(self, first: int, size: int) -> dict[str, Array]:
        return {
            name: np.asarray(values[first]) if name in self._whole else values[first : first + size]
            for name, values in self._arrays.items()
        }


def open_session(model: Path | str, threads: int) -> ort.InferenceSession:
    """Opens a model in onnxruntime's CPU provider, without its log."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    # Idle worker threads of one model would keep the cores busy that the next one is timed on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def rows_of_text(tokenizer: Path, text: Path, length: int) -> Array:
    """Returns the tokens of a text in rows of ``length``, without the rest at the end."""
    from tokenizers import Tokenizer

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
