"""``--verbose`` and ``--log-file``, which every command takes, and what they listen to.

What commands say and which steps they take goes to two loggers of Python's own ``logging``, whoever listens: nobody by
default, a file with ``--log-file``, stderr with ``--verbose``, or the program that calls the commands.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from qtool.cli.options.groups import GENERAL
from qtool.errors import UsageError
from qtool.progress import Advance, Progress
from qtool.version import __version__

_EVERYTHING = logging.getLogger("qtool")
# Without a handler of its own, Python would print warnings a second time.
_EVERYTHING.addHandler(logging.NullHandler())
SAID = logging.getLogger("qtool.said")
STEPS = logging.getLogger("qtool.steps")
# Models and data have a zero among their first bytes, and texts have none.
_LOOKED_AT_BYTES = 1024


def verbose_is_on() -> bool:
    """Tells whether steps go to stderr."""
    return bool(STEPS.handlers)


class LoggedProgress:
    """Tells the log when steps begin and end, and passes them on."""

    def __init__(self, inner: Progress) -> None:
        """Listens to all that goes to ``inner``."""
        self._inner = inner

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Advance]:
        """Opens a step; its end says how many units were done in which time."""
        STEPS.info("%s%s ...", label, "" if total is None else f" {total}")
        started, done = time.perf_counter(), 0
        with self._inner.task(label, total) as advance:

            def count(units: int) -> None:
                nonlocal done
                done += units
                advance(units)

            yield count
        seconds = time.perf_counter() - started
        STEPS.info("%s: %s in %.1f s", label, done or "done", seconds)

    def note(self, message: str) -> None:
        """Passes a remark on."""
        SAID.info("%s", message)
        self._inner.note(message)

    def warn(self, message: str) -> None:
        """Passes a warning on."""
        SAID.warning("%s", message)
        self._inner.warn(message)


def _listen(context: typer.Context, logger: logging.Logger, handler: logging.Handler, form: str) -> None:
    """Lets ``handler`` listen to ``logger`` until the outermost command is over, its error messages included."""
    handler.setFormatter(logging.Formatter(form, datefmt="%Y-%m-%dT%H:%M:%S"))
    logger.addHandler(handler)
    level = _EVERYTHING.level
    _EVERYTHING.setLevel(logging.INFO)

    def stop() -> None:
        logger.removeHandler(handler)
        handler.close()
        _EVERYTHING.setLevel(level)

    context.find_root().call_on_close(stop)


def _show_steps(context: typer.Context, value: bool) -> bool:
    if value and not context.resilient_parsing:
        _listen(context, STEPS, logging.StreamHandler(sys.stderr), "%(message)s")
    return value


def _write_log(context: typer.Context, value: Path | None) -> Path | None:
    if value is not None and not context.resilient_parsing:
        if value.is_file() and b"\0" in _first_bytes(value):
            raise UsageError(f"--log-file {value} exists and is not a text file", fix="name another file")
        handler = logging.FileHandler(value, encoding="utf-8")
        _listen(context, _EVERYTHING, handler, "%(asctime)s %(levelname)s %(message)s")
        SAID.info("qtool %s, %s", __version__, context.info_name)
    return value


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_LOOKED_AT_BYTES)


VerboseOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        is_eager=True,
        callback=_show_steps,
        help="Show when each step begins and how long it took.",
        rich_help_panel=GENERAL,
    ),
]
LogFileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--log-file",
        metavar="FILE",
        is_eager=True,
        callback=_write_log,
        help="Append messages and times to this file.",
        rich_help_panel=GENERAL,
    ),
]


def with_log(command: Callable[..., None]) -> Callable[..., None]:
    """Returns ``command`` with the options of this module, which act before it runs."""
    added = {"verbose": (VerboseOption, False), "log_file": (LogFileOption, None)}

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        command(*arguments, **{name: value for name, value in options.items() if name not in added})

    hints = typing.get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name]) for name, parameter in inspect.signature(command).parameters.items()
    ]
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for name, (hint, default) in added.items()
    ]
    run.__annotations__ = {**hints, **{name: hint for name, (hint, _) in added.items()}}
    vars(run)["__signature__"] = inspect.Signature([*own, *extra], return_annotation=None)
    return run
