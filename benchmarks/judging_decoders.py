"""Judges language models beside the first of them: perplexity, divergence and time, with onnxruntime alone.

Run: python benchmarks/judging_decoders.py ROWS.npz NAME=MODEL [NAME=MODEL ...] [--rounds N] [--threads N]

``ROWS.npz`` has token ids as ``input_ids``, one row a sample. Every row starts without a past. Times are medians of
runs in turns: a token after a row, with its cache where the graph has one, and 64 tokens at once. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from rows import DecoderFeeds

Array = npt.NDArray[Any]
MANY = 64


def main() -> None:
    """Judges and prints."""
    parser = argparse.ArgumentParser(description="Judges language models side by side.")
    parser.add_argument("rows", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--head-size", type=int, default=64, help="the last dimension of caches")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with np.load(arguments.rows) as file:
        rows = file["input_ids"]
    sessions = {
        name: _session(path, arguments.threads) for name, path in (text.split("=", 1) for text in arguments.models)
    }
    feeds = {name: DecoderFeeds(session, arguments.head_size) for name, session in sessions.items()}
    found = _losses(sessions, feeds, rows)
    for name, times in _times(sessions, feeds, rows[0], arguments.rounds).items():
        found[name] |= times
    print(json.dumps(found))


def _session(path: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _losses(
    sessions: dict[str, ort.InferenceSession], feeds: dict[str, DecoderFeeds], rows: Array
) -> dict[str, dict[str, float]]:
    """Returns perplexity, divergence from the first model in nats a token, and the share of tokens chosen alike."""
    sums = {name: np.zeros(3) for name in sessions}
    for row in rows:
        base: Array | None = None
        for name, session in sessions.items():
            logs = _log_probabilities(session.run(["logits"], feeds[name].first(row))[0][0])
            base = logs if base is None else base
            loss = -logs[np.arange(len(row) - 1), row[1:]].mean()
            divergence = (np.exp(base) * (base - logs)).sum(-1).mean()
            sums[name] += [loss, divergence, (logs.argmax(-1) == base.argmax(-1)).mean()]
    means = {name: values / len(rows) for name, values in sums.items()}
    return {
        name: {"perplexity": float(np.exp(loss)), "divergence": float(divergence), "same_token": float(same)}
        for name, (loss, divergence, same) in means.items()
    }


def _log_probabilities(logits: Array) -> Array:
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _times(
    sessions: dict[str, ort.InferenceSession], feeds: dict[str, DecoderFeeds], row: Array, rounds: int
) -> dict[str, dict[str, float]]:
    many, given = np.resize(row, MANY), {}
    for name, session in sessions.items():
        names = [node.name for node in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds[name].first(row)), strict=True))
        given[name] = (feeds[name].next(outputs, int(row[0])), feeds[name].first(many))
    taken: dict[str, list[list[float]]] = {name: [[], []] for name in sessions}
    for _ in range(rounds + 1):
        for name, session in sessions.items():
            for times, feed in zip(taken[name], given[name], strict=True):
                start = time.perf_counter()
                session.run(None, feed)
                times.append(time.perf_counter() - start)
    return {
        name: {"one_token_ms": 1e3 * float(np.median(one[1:])), "many_tokens_ms": 1e3 * float(np.median(more[1:]))}
        for name, (one, more) in taken.items()
    }


if __name__ == "__main__":
    main()
