"""Errors of calibration data, statistics and ranges."""

from __future__ import annotations

from functools import partial


class CalibError(Exception):
    """An error in data, statistics or a range, with its fix.

    Attributes:
        problem: one line, lower case, no full stop: what is wrong.
        fix: one line: what to do about it.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        """Keeps both lines separate, so that each output can format them."""
        super().__init__(f"{problem} ({fix})")
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Lets an error of another process arrive with both lines."""
        return partial(type(self), fix=self.fix), (self.problem,)


class WholeFeedError(CalibError):
    """A batch size above 1 is requested for arrays that cannot be divided into samples."""


class UnequalLengthsError(CalibError):
    """The arrays of the same samples differ in their number of rows."""
