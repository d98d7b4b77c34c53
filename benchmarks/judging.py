"""Judges models beside their float model, all in one run, with code of its own: none of qtool's takes part.

Run: python benchmarks/judging.py EVAL.npz NAME=MODEL.onnx ... [--threads 2] [--rounds 25]; one of them is ``float``.

Prints JSON. ``compare.py`` runs it in a process of its own, so that what the models take there is not taken for what
the quantizers take, which are measured as children of that process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from judgement import FLOAT, Judgement
from rows import Rows, open_session

Array = npt.NDArray[Any]
# Runs a turn: their mean is one measurement.
RUNS_A_TURN = 4
# A third axis of so many values or more holds the scores of classes, and the others the places that have a class each.
FEWEST_SCORES = 64


def main() -> None:
    """Judges and prints."""
    parser = argparse.ArgumentParser(description="Judges models beside their float model.")
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    models = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.models)}
    try:
        found = judge(models, arguments.data, threads=arguments.threads, rounds=arguments.rounds)
    except (KeyError, RuntimeError) as error:
        sys.exit(str(error))
    print(json.dumps({name: asdict(one) for name, one in found.items()}))


def judge(models: Mapping[str, Path], data: Path, *, threads: int, rounds: int) -> dict[str, Judgement]:
    """Runs every model on all of ``data`` and times them in turns; ``models`` has one called ``float``.

    Raises:
        RuntimeError: the float model itself does not load or run.
    """
    with np.load(data) as file:
        arrays = {name: file[name] for name in file.files}
    results = {name: Judgement() for name in models}
    sessions = {}
    for name, path in models.items():
        try:
            sessions[name] = open_session(path, threads)
            sessions[name].run(None, Rows(sessions[name], arrays).one())
        except Exception as error:  # noqa: BLE001 - a model that does not load or run is a result
            results[name].error = " ".join(f"does not run: {error}".split())[:160]
            sessions.pop(name, None)
    if FLOAT not in sessions:
        raise RuntimeError(f"the float model {results[FLOAT].error}")
    rows = _fitting(sessions[FLOAT], arrays)
    _judge_outputs(results, sessions, rows, arrays.get("_label"))
    times = _times(sessions, rows.one(), rounds)
    for name, seconds in times.items():
        results[name].median_ms = float(np.median(seconds) * 1e3)
        results[name].speedup = float(np.median(times[FLOAT] / seconds))
    return results


def _fitting(session: ort.InferenceSession, arrays: Mapping[str, Array]) -> Rows:
    """Returns the rows in batches, or one by one where the model turns out to take no more."""
    rows = Rows(session, arrays)
    try:
        session.run(None, next(rows.batches()))
    except Exception:  # noqa: BLE001 - onnxruntime's own errors share no base class
        rows.batch = 1
    return rows


def _judge_outputs(
    results: Mapping[str, Judgement],
    sessions: Mapping[str, ort.InferenceSession],
    rows: Rows,
    labels: Array | None,
) -> None:
    """Compares first outputs batch by batch; only what each place is taken for is kept, and vectors of unit length."""
    signal, noise = 0.0, dict.fromkeys(sessions, 0.0)
    kept: dict[str, list[Array]] = {name: [] for name in sessions}
    units = None
    for feed in rows.batches():
        outputs = {name: session.run(None, feed)[0].astype(np.float64) for name, session in sessions.items()}
        reference = outputs[FLOAT]
        units = _are_units(reference) if units is None else units
        signal += float(np.square(reference).sum())
        for name, output in outputs.items():
            noise[name] += float(np.square(output - reference).sum())
            if output.ndim == 2 or (output.ndim == 3 and output.shape[2] >= FEWEST_SCORES):
                kept[name].append(output if units else output.argmax(-1).reshape(-1))
    chosen = {name: _chosen(parts, units=bool(units)) for name, parts in kept.items() if parts}
    for name in sessions:
        if not np.isfinite(noise[name]):
            results[name].error = "its outputs are not finite"
        elif name != FLOAT:
            results[name].sqnr_db = 10 * float(np.log10(max(signal, 1e-30) / max(noise[name], 1e-30)))
        if name in chosen:
            results[name].agreement = float((chosen[name] == chosen[FLOAT]).mean())
            if labels is not None:
                results[name].accuracy = float((chosen[name] == labels[: len(chosen[name])]).mean())


def _are_units(vectors: Array) -> bool:
    return vectors.ndim == 2 and bool(np.abs(np.square(vectors).sum(1) - 1).max() < 1e-3)


def _chosen(parts: list[Array], *, units: bool) -> Array:
    """Returns the class of each place, or for vectors of length one the sample nearest to it."""
    whole = np.concatenate(parts)
    if not units:
        return whole
    likeness = whole @ whole.T
    np.fill_diagonal(likeness, -np.inf)
    return likeness.argmax(1)


def _times(
    sessions: Mapping[str, ort.InferenceSession], feed: Mapping[str, Array], rounds: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns seconds a run by model and round; every round times every model, in turns that change direction."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds):
        order = list(sessions) if number % 2 == 0 else list(sessions)[::-1]
        for name in order:
            sessions[name].run(None, feed)  # not timed: it wakes this session's threads and warms its caches
            start = time.perf_counter()
            for _ in range(RUNS_A_TURN):
                sessions[name].run(None, feed)
            times[name].append((time.perf_counter() - start) / RUNS_A_TURN)
    return {name: np.array(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    main()
