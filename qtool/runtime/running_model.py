"""What every runtime gives of a model that it has opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from qtool.calib.specs import Array, TensorSpec


class RunningModel(Protocol):
    """A model opened in a runtime.

    Attributes:
        outputs: what it returns, in its order.
    """

    outputs: tuple[TensorSpec, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs, in its order."""
        ...

    def run(self, feeds: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Returns the named outputs (default: all) for one batch of inputs.

        Raises:
            RuntimeRefusedError: the runtime stops while it runs the model.
        """
        ...
