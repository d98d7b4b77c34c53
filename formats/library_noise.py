"""Suppresses the output of libraries."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator

_LOGGERS = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppresses prints, warnings and log lines until the block ends; errors pass."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
        quiet_loggers(_LOGGERS),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def quiet_loggers(names: Iterable[str]) -> Iterator[None]:
    """Suppresses loggers of these names until the block ends."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
