"""Whether OpenVINO is here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from qtool.errors import UsageError

INSTALL = "install the extra: pip install 'qtool-onnx[openvino]'"


def is_installed() -> bool:
    """Returns whether the package is there, without importing it."""
    return find_spec("openvino") is not None


def check_installed() -> None:
    """Makes sure that the package is there, without importing it.

    Raises:
        UsageError: it is not.
    """
    if not is_installed():
        raise UsageError("OpenVINO is not installed here", fix=INSTALL)


def installed_version() -> str:
    """Returns its version."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return "unknown"
