"""The error of a model that does not run on random inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qtool.errors import InputError, RuntimeRefusedError


class NoRandomInputsError(InputError):
    """A model does not run on random inputs."""


@contextmanager
def on_random_inputs(fix: str = "give real ones with --calib-data") -> Iterator[None]:
    """Runs a model on random inputs, and translates its errors.

    Raises:
        NoRandomInputsError: it does not run.
    """
    try:
        yield
    except RuntimeRefusedError as error:
        raise NoRandomInputsError(f"the model does not run on random inputs: {error.problem}", fix=fix) from error
