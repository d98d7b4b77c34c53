"""Runs a float model over samples one by one, and does nothing with the results: what ``calibration.py`` compares with.

Run: python benchmarks/plain_inference.py MODEL.onnx DATA.npz [--threads N].
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime as ort


def main() -> None:
    """Opens the model, reads the data, runs."""
    parser = argparse.ArgumentParser(description="Runs a float model over samples one by one.")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = arguments.threads, 4
    session = ort.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
    with np.load(arguments.data) as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("_")}
    for index in range(len(next(iter(arrays.values())))):
        session.run(None, {name: values[index : index + 1] for name, values in arrays.items()})


if __name__ == "__main__":
    main()
