"""Times the calibration pass against plain float inference in one process, in turns: none of the start-up counts.

Run: python benchmarks/calibration_pass.py MODEL.onnx DATA.npz [--rounds 3] [--threads N]; prints JSON.

The pass opens its session, reads the data, runs every sample and gathers the statistics. A method's time is that of the
ranges of all tensors, from the statistics. Plain inference runs a session that is open on data that is in memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qtool.backends.targets import PRESETS
from qtool.calib.grid import Grid
from qtool.calib.ranges import RANGE_METHODS, range_method_class
from qtool.formats.registry import load
from qtool.planning import build_plan
from qtool.progress import Silent
from qtool.selection import NodeSelection
from qtool.workflows.quantize.calibrate import DataRequest, Watched, gather
from qtool.workflows.quantize.prepare import prepare


def main() -> None:
    """Runs both in turns and prints the seconds of every round."""
    parser = argparse.ArgumentParser(description="Times the calibration pass against plain float inference.")
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()

    model = prepare(load("onnx").read(arguments.model))
    watched = Watched.by(build_plan(model, PRESETS["x86"], NodeSelection()))
    data = DataRequest(source=str(arguments.data))
    run_plainly = plain_inference(arguments.model, arguments.data, arguments.threads)
    grid = Grid(bits=8, signed=False, symmetric=False)
    seconds: dict[str, list[float]] = {"plain": [], "pass": []}
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        run_plainly()
        seconds["plain"].append(time.perf_counter() - start)
        start = time.perf_counter()
        collected = gather(model, watched, data.open(), data, Silent(), threads=arguments.threads)
        seconds["pass"].append(time.perf_counter() - start)
        for name in RANGE_METHODS:
            method = range_method_class(name)()
            start = time.perf_counter()
            for seen in collected.statistics.values():
                method.span(seen, grid)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    print(json.dumps(seconds))


def plain_inference(model: Path, data: Path, threads: int) -> Callable[[], None]:
    """Opens the model, reads the data, and returns what runs all samples one by one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    with np.load(data) as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("_")}

    def run() -> None:
        for index in range(len(next(iter(arrays.values())))):
            session.run(None, {name: values[index : index + 1] for name, values in arrays.items()})

    return run


if __name__ == "__main__":
    main()
