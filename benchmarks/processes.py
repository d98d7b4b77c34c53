"""Runs a command to its end and measures it from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A command that ended.

    Attributes:
        seconds: from start to end, start-up included.
        peak_mb: the most memory that its process held, in megabytes; None where the system does not tell.
        code: its exit code.
        output: what it printed to stdout.
        errors: what it printed to stderr.
    """

    seconds: float
    peak_mb: float | None
    code: int
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """The end of what it had to say about a failure."""
        silent = f"ended by signal {-self.code}" if self.code < 0 else "no message"
        lines = [line for line in self.errors.splitlines() if line.strip()] or [silent]
        problem = [line for line in lines if line.startswith("error:")]
        return (problem or lines[-1:])[0][:200]


def run(command: Sequence[str], *, limit_seconds: float | None = None) -> Finished:
    """Runs ``command`` and waits for it; ends it after ``limit_seconds``."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        end = threading.Timer(limit_seconds or threading.TIMEOUT_MAX, process.kill)
        end.daemon = True
        end.start()
        peak = _wait(process)
        end.cancel()
        seconds = time.perf_counter() - start
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    return Finished(seconds=seconds, peak_mb=peak, code=process.returncode, output=texts[0], errors=texts[1])


def _wait(process: subprocess.Popen[bytes]) -> float | None:
    if not hasattr(os, "wait4"):  # Windows keeps no peak for a process that ended
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # Kilobytes on Linux, bytes on macOS.
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
