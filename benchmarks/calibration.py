"""Measures what calibration costs: its time against plain float inference, and whether its memory grows with the data.

Run: python benchmarks/calibration.py MODEL.onnx DATA.npz [--rounds 3] [--times 10] [--json]

The pass is timed in one process against plain inference of the same samples one by one, in turns; a method's figure is
the pass and the ranges of all tensors together. ``qtool calibrate`` is timed as a whole, start-up included, against the
same plain inference as a whole. Then the memory of one calibration is set against that of another on so many times as
many samples (the same ones repeated).
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
PASS_SCRIPT = Path(__file__).with_name("calibration_pass.py")


def main() -> None:
    """Times, weighs and prints."""
    parser = argparse.ArgumentParser(description="Measures what calibration costs.")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=10, help="how many times as many samples for the memory")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = _timed_pass(arguments) | _timed_command(arguments, Path(scratch)) | _weighed(arguments, Path(scratch))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, seconds in found["seconds"].items():
        ratio = found["ratios"].get(name)
        print(f"{name:<34}{seconds:8.2f} s{'' if ratio is None else f'{ratio:8.2f} x'}")
    for name, seconds in found["command_seconds"].items():
        ratio = f"{found['command_ratio']:8.2f} x" if name == "qtool calibrate" else ""
        print(f"{f'{name}, whole process':<34}{seconds:8.2f} s{ratio}")
    for count, peak in found["peak_mb"].items():
        print(f"{f'peak memory, {count} samples':<34}{'-' if peak is None else f'{peak:8.0f}'} MB")


def _timed_pass(arguments: argparse.Namespace) -> dict[str, Any]:
    options = ("--rounds", str(arguments.rounds), "--threads", arguments.threads)
    finished = _succeeded((sys.executable, str(PASS_SCRIPT), arguments.model, str(arguments.data), *options))
    rounds: dict[str, list[float]] = json.loads(finished.output)
    plain, passes = rounds.pop("plain"), rounds.pop("pass")
    taken = {"pass": passes}
    for method, seconds in rounds.items():
        taken[f"pass and ranges, {method}"] = [a + b for a, b in zip(passes, seconds, strict=True)]
    return {
        "seconds": {"plain inference": median(plain)} | {name: median(seconds) for name, seconds in taken.items()},
        "ratios": {name: _ratio(seconds, plain) for name, seconds in taken.items()},
    }


def _timed_command(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    plain, calibrate = [], []
    for _ in range(arguments.rounds):
        tail = (arguments.model, str(arguments.data), "--threads", arguments.threads)
        plain.append(_succeeded((sys.executable, str(PLAIN_SCRIPT), *tail)).seconds)
        calibrate.append(_calibrated(arguments, arguments.data, scratch).seconds)
    return {
        "command_seconds": {"plain inference": median(plain), "qtool calibrate": median(calibrate)},
        "command_ratio": _ratio(calibrate, plain),
    }


def _ratio(taken: Sequence[float], plain: Sequence[float]) -> float:
    return median(a / b for a, b in zip(taken, plain, strict=True))


def _calibrated(arguments: argparse.Namespace, data: Path, scratch: Path) -> Finished:
    options = ("--threads", arguments.threads, "--quiet", "--force", "-o", str(scratch / "model.stats.npz"))
    return _succeeded(
        (sys.executable, "-m", "qtool", "calibrate", arguments.model, "--calib-data", str(data), *options)
    )


def _weighed(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    with np.load(arguments.data) as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("_")}
    count = len(next(iter(arrays.values())))
    many = scratch / "many.npz"
    np.savez(many, **{name: np.concatenate([values] * arguments.times) for name, values in arrays.items()})
    runs = ((count, arguments.data), (count * arguments.times, many))
    return {"peak_mb": {samples: _calibrated(arguments, data, scratch).peak_mb for samples, data in runs}}


def _succeeded(command: Sequence[str]) -> Finished:
    finished = run(command)
    if finished.code:
        sys.exit(f"{' '.join(command)}: {finished.last_line}")
    return finished


if __name__ == "__main__":
    main()
