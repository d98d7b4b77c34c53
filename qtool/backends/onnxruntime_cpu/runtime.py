"""onnxruntime's CPU provider as a runtime to judge models on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qtool.backends.execution import Execution
from qtool.backends.execution_choice import execution_of
from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.backends.onnxruntime_cpu.targets import TARGETS
from qtool.calib.specs import Feed
from qtool.processor import integer_features
from qtool.runtime.profile import OperatorTime, operator_seconds
from qtool.runtime.session import Session


@dataclass(frozen=True, slots=True)
class OnnxruntimeRuntime:
    """onnxruntime's CPU provider; see ``Runtime``."""

    name: str = "onnxruntime"
    title: str = "onnxruntime"
    package: str = "onnxruntime"

    def load(self) -> None:
        """Does nothing: it is always there."""

    def serves(self, target: str | None) -> bool:
        """Returns whether a target is a processor of this machine's family."""
        return target is None or (target in TARGETS and target.startswith(integer_features().family))

    def sums_saturate(self) -> bool:
        """Returns whether its integer sums have 16 bits on this processor.

        Raises:
            RuntimeRefusedError: onnxruntime does not run at all.
        """
        return sums_saturate()

    @contextmanager
    def open_file(self, path: Path, *, threads: int = 0) -> Iterator[Session]:
        """Yields a session on the model as it is.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        yield Session(path, threads=threads)

    def judging(self, target: str | None) -> Execution:
        """Returns its own kernels for its own targets, and the exact semantics of Q/DQ for those of other runtimes."""
        return execution_of(target)

    def operator_seconds(self, path: Path, feed: Feed, *, threads: int = 0) -> tuple[OperatorTime, ...]:
        """Returns what onnxruntime's profiler tells, the longest first.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
        """
        return operator_seconds(path, feed, threads=threads)


RUNTIME = OnnxruntimeRuntime()
