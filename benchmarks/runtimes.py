"""Writes one table: model x {onnxruntime, OpenVINO} x {float, qtool, the runtime's own quantizer}.

Run: python benchmarks/runtimes.py FOLDER KEPT [MODEL ...] [--transformer MODEL] [--nncf-python PYTHON] [--output FILE]

FOLDER has one folder a model with ``fp32.onnx``, ``calib.npz`` and ``eval.npz``, as for ``compare.py``. Quantized
models are made once and stay in the folder KEPT, as ``MODEL.RUNTIME.QUANTIZER``. Then all forms of a model run in turns
in one process, batch 1: SQNR of the first output beside the float model in the same runtime, on samples that no
quantizer saw, and medians of times. None of qtool takes part in that. NNCF may be installed for another Python; what is
not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from processes import run
from rows import Rows, open_session

Array = npt.NDArray[Any]
HERE = Path(__file__).parent
ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
FLOAT, QTOOL, NNCF, TRANSFORMER = "float", "qtool", "nncf", "nncf-transformer"
OWN = {ONNXRUNTIME: ("onnxruntime",), OPENVINO: (NNCF, TRANSFORMER)}
# A turn is so many runs, and takes so many seconds at least: single runs of small models are shorter than the noise.
FEWEST_RUNS, SHORTEST_TURN_S = 4, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One form of a model in one runtime.

    Attributes:
        model: the model's folder.
        runtime: what runs it.
        made_by: ``float``, or what quantized it.
        sqnr_db: beside the float model in the same runtime; None for that one.
        median_ms: of one sample.
        speedup: beside the float model in the same runtime, the median of the turns.
        error: why there are no figures.
    """

    model: str
    runtime: str
    made_by: str
    sqnr_db: float | None = None
    median_ms: float | None = None
    speedup: float | None = None
    error: str | None = None


def main() -> None:
    """Makes what is missing, judges and prints."""
    parser = argparse.ArgumentParser(description="Judges quantized models in two runtimes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("kept", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--transformer", action="append", default=[], help="NNCF is also told that this is one")
    parser.add_argument("--nncf-python", default=sys.executable, help="the Python that NNCF is installed for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--samples", type=int, default=64, help="samples to compare outputs on, at most")
    parser.add_argument("--output", type=Path, help="also write the table to FILE.md, and the figures to FILE.json")
    arguments = parser.parse_args()
    arguments.kept.mkdir(parents=True, exist_ok=True)
    names = arguments.models or sorted(path.parent.name for path in arguments.folder.glob("*/fp32.onnx"))
    cells: list[Cell] = []
    for name in names:
        made = _made(arguments.folder / name, arguments.kept, arguments.nncf_python, name in arguments.transformer)
        cells += _judged(arguments.folder / name, made, arguments.threads, arguments.rounds, arguments.samples)
        print(_table([cell for cell in cells if cell.model == name]), file=sys.stderr)
    print(_table(cells))
    if arguments.output is not None:
        arguments.output.with_suffix(".md").write_text(_table(cells), encoding="utf-8")
        found = json.dumps({"machine": _machine(), "cells": [asdict(cell) for cell in cells]}, indent=2)
        arguments.output.with_suffix(".json").write_text(f"{found}\n", encoding="utf-8")


def _made(folder: Path, kept: Path, nncf_python: str, transformer: bool) -> dict[tuple[str, str], Path | str]:
    """Returns every form of a model, by runtime and what made it: its file, or why there is none."""
    model, data = str(folder / "fp32.onnx"), str(folder / "calib.npz")

    def qtool(target: str, output: Path) -> list[str]:
        options = ["--target", target, "-o", str(output), "--force", "--quiet"]
        return [sys.executable, "-m", "qtool", "quantize", model, "--calib-data", data, *options]

    def script(python: str, name: str, output: Path, *options: str) -> list[str]:
        return [python, str(HERE / name), model, data, str(output), *options]

    found: dict[tuple[str, str], Path | str] = {(runtime, FLOAT): Path(model) for runtime in OWN}
    wanted: list[tuple[str, str, Callable[[Path], list[str]]]] = [
        (ONNXRUNTIME, QTOOL, lambda output: qtool("auto", output)),
        (ONNXRUNTIME, "onnxruntime", lambda output: script(sys.executable, "onnxruntime_static.py", output)),
        (OPENVINO, QTOOL, lambda output: qtool("openvino", output)),
        (OPENVINO, NNCF, lambda output: script(nncf_python, "nncf_quantizer.py", output, "--openvino")),
    ]
    if transformer:
        wanted.append(
            (
                OPENVINO,
                TRANSFORMER,
                lambda output: script(nncf_python, "nncf_quantizer.py", output, "--openvino", "--transformer"),
            )
        )
    for runtime, made_by, command in wanted:
        output = kept / f"{folder.name}.{runtime}.{made_by}.onnx"
        forms = [output.with_suffix(suffix) for suffix in (".xml", ".onnx")]
        if not any(form.exists() for form in forms):
            finished = run(command(output))
            if finished.code:
                found[runtime, made_by] = f"not made: {finished.last_line}"
                continue
        found[runtime, made_by] = next(form for form in forms if form.exists())
    return found


def _judged(
    folder: Path, made: Mapping[tuple[str, str], Path | str], threads: int, rounds: int, samples: int
) -> list[Cell]:
    rows = Rows.read(open_session(folder / "fp32.onnx", 1), folder / "eval.npz")
    feeds = [feed for feed, _ in zip(rows.singles(), range(samples), strict=False)]
    runs: dict[tuple[str, str], Callable[[Mapping[str, Array]], Array]] = {}
    errors: dict[tuple[str, str], str] = {}
    for key, path in made.items():
        try:
            if isinstance(path, str):
                raise RuntimeError(path)
            runs[key] = _in_onnxruntime(path, threads) if key[0] == ONNXRUNTIME else _in_openvino(path, threads)
            runs[key](feeds[0])
        except Exception as error:  # noqa: BLE001 - a model that does not load or run is a result
            errors[key] = " ".join(str(error).split())[:120]
            runs.pop(key, None)
    signal, noise = dict.fromkeys(OWN, 0.0), dict.fromkeys(runs, 0.0)
    for feed in feeds:
        outputs = {key: one(feed).astype(np.float64) for key, one in runs.items()}
        for (runtime, made_by), output in outputs.items():
            reference = outputs[runtime, FLOAT]
            signal[runtime] += float(np.square(reference).sum()) if made_by == FLOAT else 0.0
            noise[runtime, made_by] += float(np.square(output - reference).sum())
    times = _times(runs, feeds[0], rounds)
    cells = [
        Cell(
            model=folder.name,
            runtime=runtime,
            made_by=made_by,
            sqnr_db=None if made_by == FLOAT else _decibels(signal[runtime], noise[runtime, made_by]),
            median_ms=float(np.median(times[runtime, made_by]) * 1e3),
            speedup=float(np.median(times[runtime, FLOAT] / times[runtime, made_by])),
        )
        for runtime, made_by in runs
    ]
    return cells + [
        Cell(model=folder.name, runtime=runtime, made_by=made_by, error=error)
        for (runtime, made_by), error in errors.items()
    ]


def _in_onnxruntime(path: Path, threads: int) -> Callable[[Mapping[str, Array]], Array]:
    session = open_session(path, threads)
    return lambda feed: session.run(None, dict(feed))[0]


def _in_openvino(path: Path, threads: int) -> Callable[[Mapping[str, Array]], Array]:
    core = openvino.Core()
    model = core.read_model(str(path))
    places = {name: place for place, port in enumerate(model.inputs) for name in port.get_names()}
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", config).create_infer_request()

    def outputs(feed: Mapping[str, Array]) -> Array:
        given = {places[name]: np.ascontiguousarray(value) for name, value in feed.items()}
        found: Array = request.infer(given, share_inputs=True).to_tuple()[0]
        return found

    return outputs


def _times(
    runs: Mapping[tuple[str, str], Callable[[Mapping[str, Array]], Array]], feed: Mapping[str, Array], rounds: int
) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
    """Returns seconds a run; every round times every form, in turns that change direction."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for number in range(rounds):
        for key in list(runs) if number % 2 == 0 else list(runs)[::-1]:
            runs[key](feed)  # not timed: it wakes this runtime's threads and warms its caches
            count, start = 0, time.perf_counter()
            while count < FEWEST_RUNS or time.perf_counter() - start < SHORTEST_TURN_S:
                runs[key](feed)
                count += 1
            times[key].append((time.perf_counter() - start) / count)
    return {key: np.array(seconds) for key, seconds in times.items()}


def _decibels(signal: float, noise: float) -> float:
    return 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


def _table(cells: Sequence[Cell]) -> str:
    """Lays out one row a model and runtime."""
    head = ("model", "runtime", "float, ms", "qtool", "the runtime's own quantizer")
    lines = [f"| {' | '.join(head)} |", "|---|---|--:|---|---|"]
    for model, runtime in dict.fromkeys((cell.model, cell.runtime) for cell in cells):
        row = {cell.made_by: cell for cell in cells if (cell.model, cell.runtime) == (model, runtime)}
        own = "; ".join(_told(row[name], name) for name in OWN[runtime] if name in row)
        milliseconds = row[FLOAT].median_ms
        shown = "" if milliseconds is None else f"{milliseconds:.2f}"
        lines.append(f"| {model} | {runtime} | {shown} | {_told(row[QTOOL], QTOOL)} | {own} |")
    return "\n".join([*lines, "", _machine(), ""])


def _told(cell: Cell, name: str) -> str:
    words = {TRANSFORMER: "as a transformer: "}.get(name, "")
    if cell.error is not None or cell.sqnr_db is None or cell.speedup is None:
        return f"{words}{'does not load' if cell.error and 'not made' not in cell.error else 'fails'}"
    return f"{words}{cell.sqnr_db:.1f} dB, {cell.speedup:.2f}x"


def _machine() -> str:
    processors = Path("/proc/cpuinfo")
    lines: Iterable[str] = processors.read_text().splitlines() if processors.exists() else ()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = ", ".join(f"{package} {version(package)}" for package in ("onnxruntime", "openvino"))
    return f"{name or platform.processor()}; {versions}"


if __name__ == "__main__":
    main()
