"""Runs a model once in a separate process, and returns its time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtool.backends.runtimes import DEFAULT_RUNTIME
from qtool.calib.specs import Array
from qtool.private_folder import private_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """Time and memory of the first run in a new process.

    Attributes:
        before_bytes: the most physical memory it held before it opened the model; None where the system does not tell.
        peak_bytes: the most it ever held.
        seconds: how long it took to open the model and to run it for the first time.
    """

    before_bytes: int | None
    peak_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class NoRun:
    """Explains why there is no measurement.

    Attributes:
        reason: one line.
    """

    reason: str


def run_in_fresh_process(
    model: Path, feeds: Mapping[str, Array], *, threads: int = 0, runtime: str = DEFAULT_RUNTIME
) -> FirstRun | NoRun:
    """Opens ``model`` in ``runtime`` in a new Python process and runs it once on ``feeds``.

    A process that has run another model before would include that one's memory, and would already have loaded code.
    """
    if not sys.executable:
        return NoRun("this Python does not know its own executable")
    with private_folder() as folder:
        batch = folder / "batch.npz"
        # Indices, not names: a name may contain characters that file names cannot.
        np.savez(batch, *feeds.values())
        task = {"model": str(model), "inputs": list(feeds), "batch": str(batch), "threads": threads, "runtime": runtime}
        done = subprocess.run(
            # -P: the working folder is not part of the search path.
            [sys.executable, "-P", "-m", "qtool.metrics.memory_probe", json.dumps(task)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return NoRun(f"the process that ran {model} ended with {done.returncode}: {last}")
    seen = json.loads(done.stdout)
    return FirstRun(before_bytes=seen["before"], peak_bytes=seen["peak"], seconds=seen["seconds"])
