"""Peak memory of a model, measured in a process that does nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qtool.backends.runtimes import DEFAULT_RUNTIME
from qtool.calib.specs import Array
from qtool.metrics.fresh_process import NoRun, run_in_fresh_process


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The peak resident memory of a process that loads a model and runs it on one batch.

    Attributes:
        peak_bytes: that of the whole process, interpreter and runtime included; None where it could not be measured.
        added_bytes: how far loading and running the model raised it.
        reason: why there is no figure, None where there is one.
    """

    peak_bytes: int | None = None
    added_bytes: int | None = None
    reason: str | None = None


def measure_memory(
    model: Path, feeds: Mapping[str, Array], *, threads: int = 0, runtime: str = DEFAULT_RUNTIME
) -> Memory:
    """Runs ``model`` once on ``feeds`` in ``runtime`` in a fresh process and returns that process's peak.

    A process that has run another model before would include that one's peak.
    """
    seen = run_in_fresh_process(model, feeds, threads=threads, runtime=runtime)
    if isinstance(seen, NoRun):
        return Memory(reason=seen.reason)
    if seen.peak_bytes is None or seen.before_bytes is None:
        return Memory(reason="this system does not tell a process's peak memory")
    return Memory(peak_bytes=seen.peak_bytes, added_bytes=seen.peak_bytes - seen.before_bytes)
