"""What a person decides about quantization, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from calib.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Says which integers tensors become.

    Attributes:
        activations: the grid of activations, always one scale a tensor.
        weights: the grid of weights.
        per_channel: whether weights get one scale an output channel, where the operator can read that.
    """

    activations: Grid
    weights: Grid
    per_channel: bool = True

    @property
    def description(self) -> str:
        """The scheme in words, such as ``u8 asymmetric activations, s8 symmetric per-channel weights``."""
        spread = "per-channel" if self.per_channel else "per-tensor"
        return f"{_described(self.activations)} activations, {_described(self.weights)} {spread} weights"


# x86 runs u8 activations by s8 weights 1.6 to 2.4 times faster than float; s8 by s8 hardly faster than float.
PRESETS: Mapping[str, Scheme] = {
    "x86": Scheme(
        activations=Grid(bits=8, signed=False, symmetric=False),
        weights=Grid(bits=8, signed=True, symmetric=True),
    ),
}
DEFAULT_PRESET = "x86"


def symmetric_activations(scheme: Scheme) -> Scheme:
    """Returns ``scheme`` with the zero point of activations in the middle of their grid."""
    return replace(scheme, activations=replace(scheme.activations, symmetric=True))


def _described(grid: Grid) -> str:
    return f"{grid.name[0]}{grid.bits} {'symmetric' if grid.symmetric else 'asymmetric'}"
