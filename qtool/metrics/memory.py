"""How much memory a model takes while it runs, seen from outside: in a process that does nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.specs import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The most physical memory that a process held which loaded a model and ran it on one batch.

    Attributes:
        peak_bytes: of the whole process, interpreter and runtime included; None where it could not be measured.
        added_bytes: how far loading and running the model raised it.
        reason: why there is no figure, None where there is one.
    """

    peak_bytes: int | None = None
    added_bytes: int | None = None
    reason: str | None = None


def measure_memory(model: Path, feeds: Mapping[str, Array], *, threads: int = 0) -> Memory:
    """Runs ``model`` once on ``feeds`` in a fresh process and returns that process's peak.

    A process that has run another model before would show that one's peak.
    """
    if not sys.executable:
        return Memory(reason="this Python does not know its own executable")
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "batch.npz"
        # Positions, not names: a name may hold what no file name can.
        np.savez(batch, *feeds.values())
        task = {"model": str(model), "inputs": list(feeds), "batch": str(batch), "threads": threads}
        done = subprocess.run(
            # -P: what lies in the working folder is no part of the search path.
            [sys.executable, "-P", "-m", "qtool.metrics.memory_probe", json.dumps(task)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Memory(reason=f"the process that ran {model} ended with {done.returncode}: {last}")
    seen = json.loads(done.stdout)
    if seen["peak"] is None:
        return Memory(reason="this system does not tell a process's peak memory")
    return Memory(peak_bytes=seen["peak"], added_bytes=seen["peak"] - seen["before"])
