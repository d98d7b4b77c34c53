"""What goes wrong between data and scales."""

from __future__ import annotations


class CalibError(Exception):
    """Says what is wrong with data, statistics or a range, and how to fix it.

    Attributes:
        problem: one line, lower case, no full stop: what is wrong.
        fix: one line: what to do about it.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        """Keeps both lines apart, so that each output can lay them out its own way."""
        super().__init__(f"{problem} ({fix})")
        self.problem = problem
        self.fix = fix


class WholeFeedError(CalibError):
    """Arrays that cannot be taken apart into samples are to share a batch."""


class UnequalLengthsError(CalibError):
    """Arrays that are rows of the same samples have different numbers of them."""
