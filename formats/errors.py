"""Errors of model files."""

from __future__ import annotations

from functools import partial


class FormatError(Exception):
    """An error of a file, with its fix.

    Attributes:
        problem: one line, lower case, no full stop: what is wrong; control characters of names in it are escaped.
        fix: one line: what to do about it.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        """Keeps both lines separate, so that each output can format them."""
        self.problem = "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in problem)
        super().__init__(f"{self.problem} ({fix})")
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Lets an error of another process arrive with both lines."""
        return partial(type(self), fix=self.fix), (self.problem,)
