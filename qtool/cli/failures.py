"""What a person sees when a command fails, and the exit code that goes with it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from dataclasses import dataclass

import typer

from qtool.calib.errors import CalibError
from qtool.cli.console import Console
from qtool.errors import QtoolError
from qtool.formats.errors import FormatError

_DEFECT = 3
_INTERRUPTED = 130
_READER_GONE = 141


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error in the words of the command line.

    Attributes:
        exit_code: what the process returns.
        problem: one line: what is wrong.
        fix: one line: what to do about it.
    """

    exit_code: int
    problem: str
    fix: str


def report_failure(error: BaseException, *, debug: bool) -> int:
    """Prints ``error`` to stderr, with its traceback when ``debug``, and returns the exit code."""
    if isinstance(error, BrokenPipeError):
        # Nobody reads stdout any more; without this the interpreter complains once more when it closes it.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    if debug:
        traceback.print_exception(error)
    console = Console()
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        console.remark("interrupted; no partial files are left")
        return _INTERRUPTED
    failure = describe(error)
    console.fail(failure.problem, failure.fix)
    return failure.exit_code


def describe(error: BaseException) -> Failure:
    """Puts ``error`` into one line of what is wrong and one of what to do."""
    if isinstance(error, QtoolError):
        return Failure(exit_code=error.exit_code, problem=error.problem, fix=error.fix)
    if isinstance(error, FormatError | CalibError):
        return Failure(exit_code=2, problem=error.problem, fix=error.fix)
    if isinstance(error, MemoryError):
        return Failure(
            exit_code=2,
            problem="out of memory",
            fix="use a smaller --batch-size, close other programs, or use a machine with more memory",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(
            exit_code=2,
            problem=f"cannot use {error.filename}: {(error.strerror or str(error)).lower()}",
            fix="check that the path is right and that you may read or write it",
        )
    usage = _usage(error)
    if usage is not None:
        return usage
    return Failure(
        exit_code=_DEFECT,
        problem=f"a defect in qtool: {type(error).__name__}: {_one_line(str(error))}",
        fix="run again with --debug and report what it prints",
    )


def _usage(error: BaseException) -> Failure | None:
    # Typer carries its own copy of the parser, or depends on it, according to its version: its errors are told by
    # what they offer, not by their class.
    say = getattr(error, "format_message", None)
    if say is None:
        return None
    context = getattr(error, "ctx", None)
    command = "qtool" if context is None else context.command_path
    parameter = getattr(getattr(error, "param", None), "name", None)
    fix = f"`{command} --help` lists what it takes"
    if context is not None and parameter is not None:
        source = context.get_parameter_source(parameter)
        if source is not None and source.name == "DEFAULT_MAP":
            fix = f"correct it in the settings file, or see `{command} --help`"
    # The name of the error's class, in newer versions, says nothing to a person.
    said = _one_line(say()).replace(": Value error, ", ": ")
    return Failure(exit_code=2, problem=_lower_first(said).rstrip("."), fix=fix)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
