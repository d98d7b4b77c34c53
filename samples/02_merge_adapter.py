"""Merges a LoRA adapter into the digit model, quantizes the result and reports on it.

Run: python samples/02_merge_adapter.py [FOLDER]

The model knows white digits on black paper, the adapter ``inverted_digits`` was trained on black ones on white paper
(``train_digits_adapter.py``). Writes into FOLDER (default: demo-output), and shows every command before what it prints.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import numpy as np

first_sample = importlib.import_module("01_main_job")
SAMPLES, qtool, shown = first_sample.SAMPLES, first_sample.qtool, first_sample.shown


def invert(source: Path, target: Path) -> str:
    """Writes the digits in ``source`` with paper and ink exchanged, and returns the path as a person would type it."""
    with np.load(source) as digits:
        arrays = {name: 1 - digits[name] if name == "image" else digits[name] for name in digits.files}
    np.savez_compressed(target, **arrays)
    return str(shown(target))


def main() -> None:
    """Merges, quantizes and reports."""
    parser = argparse.ArgumentParser(description="Merges an adapter into the digit model and quantizes the result.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-output"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    calib = invert(SAMPLES / "digits_calib.npz", folder / "inverted_calib.npz")
    evaluation = invert(SAMPLES / "digits_eval.npz", folder / "inverted_eval.npz")
    base, adapter = shown(SAMPLES / "mnist_cnn.pth"), shown(SAMPLES / "inverted_digits")
    merged, floating, integer = (
        shown(folder / name) for name in ("inverted.pth", "inverted.onnx", "inverted.int8.onnx")
    )
    factory = shown(SAMPLES / "mnist_cnn.py") + ":build"
    qtool("merge-lora", base, adapter, "-o", merged, "--force")
    qtool("convert", merged, "--model", factory, "--calib-data", calib, "-o", floating, "--force")
    qtool("quantize", floating, "--calib-data", calib, "--smallest", "-o", integer, "--force")
    qtool("report", floating, integer, "--data", evaluation, "--labels", "_label", "--fail-if", "top1_drop > 0.5")


if __name__ == "__main__":
    main()
