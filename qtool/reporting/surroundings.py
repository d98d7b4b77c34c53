"""Where figures were measured: the machine and the packages that have a say in them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qtool.reporting.model import Machine
from qtool.version import __version__

_PACKAGES = ("onnxruntime", "numpy", "onnx-ir")
_PROCESSORS = Path("/proc/cpuinfo")


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Returns the versions of qtool, Python and the packages that models run on, ``others`` among them."""
    found = {"qtool": __version__, "python": platform.python_version()}
    for name in dict.fromkeys((*_PACKAGES, *others)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"  # a build without metadata, or under another name such as onnxruntime-gpu
    return found


def machine() -> Machine:
    """Describes the machine this runs on."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}", processor=_processor(), cores=os.cpu_count() or 1
    )


def _processor() -> str:
    if _PROCESSORS.exists():
        # On Linux, platform.processor() knows the architecture at best.
        for line in _PROCESSORS.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
