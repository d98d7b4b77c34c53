"""OpenVINO as a runtime to judge models on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from qtool.backends.execution import Execution
from qtool.backends.openvino.execution import IN_OPENVINO, opened_file
from qtool.backends.openvino.installed import check_installed
from qtool.backends.openvino.integer_sums import sums_saturate
from qtool.backends.openvino.session import OpenvinoSession, profiled_seconds
from qtool.backends.openvino.targets import TARGETS
from qtool.calib.specs import Feed
from qtool.runtime.profile import OperatorTime


@dataclass(frozen=True, slots=True)
class OpenvinoRuntime:
    """OpenVINO's CPU plugin; see ``Runtime``."""

    name: str = "openvino"
    title: str = "OpenVINO"
    package: str = "openvino"

    def load(self) -> None:
        """Imports it.

        Raises:
            UsageError: it is not installed.
        """
        check_installed()
        import openvino  # noqa: F401 - what it takes is not the model's

    def serves(self, target: str | None) -> bool:
        """Returns whether a target is one of OpenVINO."""
        return target is None or target in TARGETS

    def sums_saturate(self) -> bool:
        """Returns whether its integer sums have 16 bits on this processor.

        Raises:
            UsageError: OpenVINO is not installed.
            RuntimeRefusedError: it does not run at all.
        """
        return sums_saturate()

    def open_file(self, path: Path, *, threads: int = 0) -> AbstractContextManager[OpenvinoSession]:
        """Opens the model as OpenVINO's CPU plugin compiles it.

        Raises:
            UsageError: OpenVINO is not installed.
            RuntimeRefusedError: it does not load the model.
        """
        return IN_OPENVINO.open_file(path, threads=threads)

    def judging(self, target: str | None) -> Execution:
        """Returns the same for every target: its Q/DQ mean what they say there, too."""
        return IN_OPENVINO

    def operator_seconds(self, path: Path, feed: Feed, *, threads: int = 0) -> tuple[OperatorTime, ...]:
        """Returns what OpenVINO's performance counters tell, the longest first.

        Raises:
            RuntimeRefusedError: OpenVINO does not load or run the model.
        """
        return profiled_seconds(opened_file(path, threads=threads, profiles=True), feed)


RUNTIME = OpenvinoRuntime()
