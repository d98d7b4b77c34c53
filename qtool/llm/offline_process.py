"""Runs modules that import transformers in processes of their own, without a network and without their noise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from qtool.errors import InputError

_LONGEST_REASON = 300
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONIOENCODING": "utf-8",
}


def run_offline(module: str, *arguments: str | Path, scratch: Path, problem: str, fix: str) -> None:
    """Runs ``module`` as a program, to its end.

    Args:
        module: what to run.
        arguments: what it is given.
        scratch: a folder for its log, and for what libraries like to keep.
        problem: what it means when it fails; the last line that it said is put behind.
        fix: what to do then.

    Raises:
        InputError: it fails.
    """
    log = scratch / "log.txt"
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            # -P: the working folder is not part of the search path.
            [sys.executable, "-P", "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                **_OFFLINE,
                "HF_HOME": str(scratch / "hub"),
                "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            },
            cwd=scratch,
            check=False,
        )
    if done.returncode:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        said = next((line for line in reversed(lines) if line), f"its process ended with {done.returncode}")
        raise InputError(f"{problem}: {said[:_LONGEST_REASON]}", fix=fix)
