"""Measures what calibration costs: its time against plain float inference, and whether its memory grows with the data.

Run: python benchmarks/calibration.py MODEL.onnx DATA.npz [--rounds 3] [--times 10] [--method NAME ...] [--json]

Every round runs, in turns, plain inference of all samples one by one, ``qtool calibrate``, and for each method all of
``qtool quantize --calib-data``, each in a process of its own. The ratios set the whole time of the commands, start-up
included, against the bare runs of plain inference, its start-up left out. Then the memory of one calibration is set
against that of another on so many times as many samples (the same ones repeated).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from processes import Finished, run

PLAIN_SCRIPT = Path(__file__).with_name("plain_inference.py")
METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")


def main() -> None:
    """Times, weighs and prints."""
    parser = argparse.ArgumentParser(description="Measures what calibration costs.")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=10, help="how many times as many samples for the memory")
    parser.add_argument("--method", action="append", choices=METHODS, help="quantize with it as well; repeatable")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = _timed(arguments, Path(scratch)) | _weighed(arguments, Path(scratch))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'plain inference, bare runs':<34}{found['plain_seconds']:8.2f} s")
    for name, seconds in found["seconds"].items():
        print(f"{name:<34}{seconds:8.2f} s {found['ratios'][name]:8.2f} x")
    for count, peak in found["peak_mb"].items():
        print(f"{f'peak memory, {count} samples':<34}{'-' if peak is None else f'{peak:8.0f}'} MB")


def _timed(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    qtool = (sys.executable, "-m", "qtool")
    tail = ("--calib-data", str(arguments.data), "--threads", arguments.threads, "--quiet", "--force", "-o")
    commands = {"qtool calibrate": (*qtool, "calibrate", arguments.model, *tail, str(scratch / "model.stats.npz"))}
    for method in arguments.method or ():
        command = (*qtool, "quantize", arguments.model, "--method", method, *tail, str(scratch / "model.onnx"))
        commands[f"qtool quantize --method {method}"] = command
    plain_command = (sys.executable, str(PLAIN_SCRIPT), arguments.model, str(arguments.data))
    plain: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        plain.append(float(_succeeded((*plain_command, "--threads", arguments.threads)).output))
        for name, command in commands.items():
            seconds[name].append(_succeeded(command).seconds)
    ratios = {name: median(a / b for a, b in zip(taken, plain, strict=True)) for name, taken in seconds.items()}
    return {
        "plain_seconds": median(plain),
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "ratios": ratios,
    }


def _weighed(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    with np.load(arguments.data) as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("_")}
    count = len(next(iter(arrays.values())))
    many = scratch / "many.npz"
    np.savez(many, **{name: np.concatenate([values] * arguments.times) for name, values in arrays.items()})
    peaks = {}
    for samples, data in ((count, arguments.data), (count * arguments.times, many)):
        options = ("--threads", arguments.threads, "--quiet", "--force", "-o", str(scratch / "model.stats.npz"))
        command = (sys.executable, "-m", "qtool", "calibrate", arguments.model, "--calib-data", str(data), *options)
        peaks[samples] = _succeeded(command).peak_mb
    return {"peak_mb": peaks}


def _succeeded(command: Sequence[str]) -> Finished:
    finished = run(command)
    if finished.code:
        sys.exit(f"{' '.join(command)}: {finished.last_line}")
    return finished


if __name__ == "__main__":
    main()
