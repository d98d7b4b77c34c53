"""Runs the main job: from a ``.pth`` to a smaller, faster and checked model, one ``qtool`` command after the other.

Run: python samples/01_main_job.py [FOLDER]

Writes into FOLDER (default: demo-output) and shows every command before what it prints.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent


def shown(path: Path) -> str:
    """Returns ``path`` as a person in the working folder would type it."""
    try:
        return os.path.relpath(path).replace(os.sep, "/")
    except ValueError:  # on Windows, another drive
        return str(path)


def qtool(*arguments: str) -> None:
    """Shows one ``qtool`` command and runs it; ends with its exit code where that is not 0."""
    print(f"\n$ qtool {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "qtool", *arguments], check=False).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Converts, calibrates, quantizes and reports."""
    parser = argparse.ArgumentParser(description="Runs the main job on the digit model.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-output"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    weights, factory = shown(SAMPLES / "mnist_cnn.pth"), shown(SAMPLES / "mnist_cnn.py") + ":build"
    calib, evaluation = shown(SAMPLES / "digits_calib.npz"), shown(SAMPLES / "digits_eval.npz")
    floating, statistics, integer = (
        shown(folder / name) for name in ("mnist_cnn.onnx", "mnist_cnn.stats.npz", "mnist_cnn.int8.onnx")
    )
    qtool("convert", weights, "--to", "onnx", "--model", factory, "--calib-data", calib, "-o", floating, "--force")
    qtool("calibrate", floating, "--calib-data", calib, "-o", statistics, "--force")
    data = ("--calib-stats", statistics, "--calib-data", calib)
    qtool("quantize", floating, *data, "--per-channel", "--smallest", "-o", integer, "--force")
    gates = ("--fail-if", "top1_drop > 0.3", "--fail-if", "size_ratio > 0.4")
    qtool("report", floating, integer, "--data", evaluation, "--labels", "_label", *gates)


if __name__ == "__main__":
    main()
