"""The registry of runtimes that models can be judged on: the values of ``qtool report --runtime``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.backends.execution import Execution
    from qtool.calib.specs import Feed
    from qtool.runtime.profile import OperatorTime
    from qtool.runtime.running_model import RunningModel

RUNTIMES: Mapping[str, str] = {
    "onnxruntime": "qtool.backends.onnxruntime_cpu.runtime:RUNTIME",
    "openvino": "qtool.backends.openvino.runtime:RUNTIME",
}
DEFAULT_RUNTIME = "onnxruntime"


class Runtime(Protocol):
    """What runs models in this process.

    Attributes:
        name: its key in ``RUNTIMES``.
        title: what it calls itself.
        package: the Python package whose version counts.
    """

    @property
    def name(self) -> str:
        """Its key in ``RUNTIMES``."""
        ...

    @property
    def title(self) -> str:
        """What it calls itself."""
        ...

    @property
    def package(self) -> str:
        """The Python package whose version counts."""
        ...

    def load(self) -> None:
        """Imports its libraries.

        Raises:
            UsageError: they are not installed.
        """
        ...

    def serves(self, target: str | None) -> bool:
        """Returns whether models for ``target`` run in it on this machine as they do there; None is no known target."""
        ...

    def sums_saturate(self) -> bool:
        """Returns whether its integer sums have 16 bits on this processor.

        Raises:
            RuntimeRefusedError: it does not run at all.
        """
        ...

    def open_file(self, path: Path, *, threads: int = 0) -> AbstractContextManager[RunningModel]:
        """Opens a model as it is, as applications do.

        Raises:
            RuntimeRefusedError: it does not load the model.
        """
        ...

    def judging(self, target: str | None) -> Execution:
        """Returns how outputs of models for ``target`` are judged in it."""
        ...

    def operator_seconds(self, path: Path, feed: Feed, *, threads: int = 0) -> tuple[OperatorTime, ...]:
        """Returns how long each operator takes, the longest first.

        Raises:
            RuntimeRefusedError: it does not load or run the model.
        """
        ...


def runtime_named(name: str) -> Runtime:
    """Returns a runtime by its key in ``RUNTIMES``.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in RUNTIMES:
        near = get_close_matches(name, RUNTIMES, n=1, cutoff=0.0)
        raise UsageError(
            f"there is no runtime '{name}' here", fix=f"did you mean '{near[0]}'? all of them: {', '.join(RUNTIMES)}"
        )
    module, _, attribute = RUNTIMES[name].partition(":")
    runtime: Runtime = getattr(import_module(module), attribute)
    return runtime
