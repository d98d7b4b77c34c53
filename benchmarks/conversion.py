"""Measures what ``qtool convert`` takes beside torch's exporter alone, which it calls.

Run: python benchmarks/conversion.py STATE_DICT.pth file.py:factory x=batch,3,224,224 [--calib-data DATA] [--rounds 5]

Both are processes of their own, in turns, with start-up, loading of the weights and writing of the result in their
times. Beyond the export, qtool audits the file, runs the module and the graph at three sizes, compares what they give,
and checks what it wrote. Prints JSON: seconds of each round, their medians, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from processes import run

EXPORTER_SCRIPT = Path(__file__).with_name("torch_exporter.py")


def main() -> None:
    """Times and prints."""
    parser = argparse.ArgumentParser(description="Measures what qtool convert takes beside torch's exporter alone.")
    parser.add_argument("weights", help="a bare state dict")
    parser.add_argument("factory", help="pkg.module:factory or file.py:factory")
    parser.add_argument("input", help="name and shape of its input, such as x=batch,3,224,224; names are free")
    parser.add_argument("--calib-data", help="real data for qtool to compare on")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    data = () if arguments.calib_data is None else ("--calib-data", arguments.calib_data)
    seconds: dict[str, list[float]] = {"exporter": [], "convert": []}
    with tempfile.TemporaryDirectory() as scratch:
        result = str(Path(scratch) / "model.onnx")
        given = (arguments.weights, "--model", arguments.factory, "--input-shape", arguments.input, *data)
        commands = {
            "exporter": (str(EXPORTER_SCRIPT), arguments.weights, arguments.factory, arguments.input, result),
            "convert": ("-m", "qtool", "convert", *given, "-o", result, "--force", "--quiet"),
        }
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                seconds[name].append(_seconds((sys.executable, *command)))
    ratios = [convert / exporter for convert, exporter in zip(seconds["convert"], seconds["exporter"], strict=True)]
    medians = {name: median(taken) for name, taken in seconds.items()}
    print(json.dumps({"seconds": seconds, "medians": medians, "ratio": median(ratios)}, indent=2))


def _seconds(command: Sequence[str]) -> float:
    finished = run(command)
    if finished.code:
        sys.exit(f"{' '.join(command)}: {finished.last_line}")
    return finished.seconds


if __name__ == "__main__":
    main()
