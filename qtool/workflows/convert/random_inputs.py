"""Says in one way that a model takes no inputs that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qtool.errors import InputError, RuntimeRefusedError


class NoRandomInputsError(InputError):
    """A model does not run on inputs that are made up."""


@contextmanager
def on_random_inputs(fix: str = "give real ones with --calib-data") -> Iterator[None]:
    """Runs a model that nobody gave data for, and blames the inputs where it stops.

    Raises:
        NoRandomInputsError: it stops.
    """
    try:
        yield
    except RuntimeRefusedError as error:
        raise NoRandomInputsError(f"the model does not run on random inputs: {error.problem}", fix=fix) from error
