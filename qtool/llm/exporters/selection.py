"""Which exporters there are, and which are installed here."""

from __future__ import annotations

import importlib.util
from importlib import import_module

from qtool.errors import InputError
from qtool.llm.exporters import EXPORTERS
from qtool.llm.exporters.base import DecoderExporter


def load_exporter(name: str) -> DecoderExporter:
    """Returns the exporter called ``name``; its package is not imported."""
    module, _, attribute = EXPORTERS[name].partition(":")
    exporter: DecoderExporter = getattr(import_module(module), attribute)()
    return exporter


def installed_exporters() -> tuple[str, ...]:
    """Returns the exporters whose packages are installed, in the order in which they are asked.

    Raises:
        InputError: transformers is missing, or each of them is.
    """
    found = tuple(name for name in EXPORTERS if importlib.util.find_spec(load_exporter(name).package) is not None)
    missing = [] if importlib.util.find_spec("transformers") else ["transformers"]
    missing += [] if found else [load_exporter(name).distribution for name in EXPORTERS][:1]
    if missing:
        raise InputError(
            f"converting language models needs {' and '.join(missing)}, not installed here",
            fix="install the extra: pip install 'qtool-onnx[llm]'",
        )
    return found
