"""Judges models beside their float model, all in one run, with code of its own: none of qtool's takes part."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Array = npt.NDArray[Any]
FLOAT = "float"
# Samples a run where the model leaves the number open.
BATCH = 16
# Runs a turn: their mean is one measurement.
RUNS_A_TURN = 4


@dataclass(slots=True)
class Judgement:
    """What was found out about one model.

    Attributes:
        sqnr_db: signal over error power of the first output, 10 log10(sum x^2 / sum (x - y)^2).
        agreement: share of samples for which it chooses the same class, or for unit vectors the same nearest neighbour.
        accuracy: share of right classes, where there are labels.
        median_ms: median time of one sample.
        speedup: median over rounds of the float model's time over this one's in the same round.
        error: why there is nothing else.
    """

    sqnr_db: float | None = None
    agreement: float | None = None
    accuracy: float | None = None
    median_ms: float | None = None
    speedup: float | None = None
    error: str | None = None


def judge(models: Mapping[str, Path], data: Path, *, threads: int, rounds: int) -> dict[str, Judgement]:
    """Runs every model on all of ``data`` and times them in turns; ``models`` has one called ``float``.

    Raises:
        RuntimeError: the float model itself does not load or run.
    """
    with np.load(data) as file:
        arrays = {name: file[name] for name in file.files}
    inputs = {name: values for name, values in arrays.items() if not name.startswith("_")}
    results = {name: Judgement() for name in models}
    sessions = {}
    for name, path in models.items():
        try:
            sessions[name] = _open(path, threads)
            sessions[name].run(None, {key: values[: _batch(sessions[name])] for key, values in inputs.items()})
        except Exception as error:  # noqa: BLE001 - a model that does not load or run is a result
            results[name].error = " ".join(f"does not run: {error}".split())[:160]
            sessions.pop(name, None)
    if FLOAT not in sessions:
        raise RuntimeError(f"the float model {results[FLOAT].error}")
    _judge_outputs(results, sessions, inputs, arrays.get("_label"))
    times = _times(sessions, {name: values[:1] for name, values in inputs.items()}, rounds)
    for name, seconds in times.items():
        results[name].median_ms = float(np.median(seconds) * 1e3)
        results[name].speedup = float(np.median(times[FLOAT] / seconds))
    return results


def _open(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _batch(session: ort.InferenceSession) -> int:
    firsts = [node.shape[0] for node in session.get_inputs() if node.shape]
    return next((first for first in firsts if isinstance(first, int)), BATCH)


def _judge_outputs(
    results: Mapping[str, Judgement],
    sessions: Mapping[str, ort.InferenceSession],
    inputs: Mapping[str, Array],
    labels: Array | None,
) -> None:
    """Compares first outputs batch by batch; only vectors, which are small, are kept for more."""
    signal, noise = 0.0, dict.fromkeys(sessions, 0.0)
    vectors: dict[str, list[Array]] = {name: [] for name in sessions}
    for feed in _feeds(inputs, _batch(sessions[FLOAT])):
        reference = sessions[FLOAT].run(None, feed)[0].astype(np.float64)
        signal += float(np.square(reference).sum())
        for name, session in sessions.items():
            output = reference if name == FLOAT else session.run(None, feed)[0].astype(np.float64)
            noise[name] += float(np.square(output - reference).sum())
            if output.ndim == 2:
                vectors[name].append(output)
    whole = {name: np.concatenate(parts) for name, parts in vectors.items() if parts}
    for name in sessions:
        if name != FLOAT:
            results[name].sqnr_db = 10 * float(np.log10(signal / max(noise[name], 1e-30)))
        if name in whole:
            chosen = _chosen(whole[name], units=_are_units(whole[FLOAT]))
            results[name].agreement = float((chosen == _chosen(whole[FLOAT], units=_are_units(whole[FLOAT]))).mean())
            if labels is not None:
                results[name].accuracy = float((whole[name].argmax(1) == labels[: len(chosen)]).mean())


def _feeds(inputs: Mapping[str, Array], batch: int) -> Iterator[dict[str, Array]]:
    count = len(next(iter(inputs.values())))
    for first in range(0, count - count % batch if batch != BATCH else count, batch):
        yield {name: values[first : first + batch] for name, values in inputs.items()}


def _are_units(vectors: Array) -> bool:
    return bool(np.abs(np.square(vectors).sum(1) - 1).max() < 1e-3)


def _chosen(vectors: Array, *, units: bool) -> Array:
    """Returns the class of each row, or for vectors of length one the row nearest to it."""
    if not units:
        return vectors.argmax(1)
    likeness = vectors @ vectors.T
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
