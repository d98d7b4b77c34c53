"""The errors that the user can meet, each with the way out of it.

::

    QtoolError            exit 2   base: one line of what is wrong, one of how to fix it
    ├── UsageError        exit 2   an option, or a combination of options, makes no sense
    ├── InputError        exit 2   a model or data cannot be used as it is
    ├── OutputError       exit 2   a result cannot be written where it should go
    ├── RuntimeRefusedError exit 2   onnxruntime will not load or run a model
    └── GateError         exit 1   everything worked, but a figure misses its gate

``qtool.formats.errors.FormatError`` and ``qtool.calib.errors.CalibError`` carry the same two fields; the command
line's boundary treats them like a ``QtoolError``.
"""

from __future__ import annotations

from functools import partial


class QtoolError(Exception):
    """An error, with its fix.

    Attributes:
        problem: one line, lower case, no full stop: what is wrong.
        fix: one line: what to do about it.
        exit_code: what the process returns when this reaches the command line.
    """

    exit_code = 2

    def __init__(self, problem: str, *, fix: str) -> None:
        """Keeps both lines apart, so that each output can lay them out its own way."""
        super().__init__(f"{problem} ({fix})")
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Lets an error of another process arrive with both lines."""
        return partial(type(self), fix=self.fix), (self.problem,)


class UsageError(QtoolError):
    """An option, or a combination of options, makes no sense."""


class InputError(QtoolError):
    """A model or data cannot be used as it is."""


class OutputError(QtoolError):
    """A result cannot be written where it should go."""


class RuntimeRefusedError(QtoolError):
    """The runtime, onnxruntime, will not load or run a model."""


class GateError(QtoolError):
    """A figure misses the gate that was set for it."""

    exit_code = 1
