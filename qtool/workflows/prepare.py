"""Gets a float graph ready to be quantized."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import onnx_ir as ir

from qtool.passes import PREPARE_PASSES


def prepare(model: ir.Model) -> ir.Model:
    """Runs every pass of ``PREPARE_PASSES`` over ``model``, in place, and returns it.

    Raises:
        InputError: the model's opset cannot be raised.
    """
    with _quiet_libraries():
        for location in PREPARE_PASSES.values():
            module, _, name = location.partition(":")
            graph_pass: ir.passes.PassBase = getattr(import_module(module), name)()
            model = graph_pass(model).model
    return model


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silences the graph libraries' own logs: what they could not improve stays as it was, which is no news."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
