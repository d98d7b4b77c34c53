"""Quantization schemes: integer types, granularity and target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from qtool.calib.grid import Grid
from qtool.weights.blocks.choices import WeightFormat
from qtool.weights.blocks.grid import BlockGrid

U8 = Grid(bits=8, signed=False, symmetric=False)
U8_SYMMETRIC = Grid(bits=8, signed=False, symmetric=True)
S8 = Grid(bits=8, signed=True, symmetric=False)
S8_SYMMETRIC = Grid(bits=8, signed=True, symmetric=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The integer types of tensors.

    Attributes:
        activations: the grid of activations, always one scale per tensor.
        weights: the grid of weights.
        per_channel: whether weights get one scale an output channel, where the operator can read that.
        integer_biases: whether biases are stored as int32, or stay float.
        backend: the runtime that it is for, a key of ``BACKENDS``.
        carries_integers: whether that runtime carries integers from layer to layer, with clamps inside of them.
        largest_pair: what two neighbouring weights of one sign may add up to, so that sums of 16 bits hold their
            products; None where sums have 32 bits.
        unsigned_layers: layers whose weights are u8 instead, whose sums have 32 bits everywhere.
        offers_unsigned: whether that is a choice for single layers; with VNNI it gains nothing and takes longer.
        target: the preset that it comes from.
        machine: what that preset is for, in words.
        activation_bits: the widths of activations that the runtime computes with.
        takes_float8: whether the runtime computes with 8-bit floats.
        placement_only: whether the runtime is not run by qtool anywhere, and known by its published rules only.
    """

    activations: Grid
    weights: Grid
    per_channel: bool = True
    integer_biases: bool = True
    backend: str = "onnxruntime-cpu"
    carries_integers: bool = True
    largest_pair: int | None = None
    unsigned_layers: frozenset[str] = frozenset()
    offers_unsigned: bool = False
    target: str = "x86"
    machine: str = "any x86"
    activation_bits: tuple[int, ...] = (8,)
    takes_float8: bool = False
    placement_only: bool = False

    @property
    def standing(self) -> str:
        """The machine, and whether qtool runs models there."""
        return f"{self.machine} (placement only)" if self.placement_only else self.machine

    @property
    def float8(self) -> bool:
        """Whether tensors become 8-bit floats instead of integers."""
        return self.activations.float8 is not None

    def weights_of(self, layer: str) -> Grid:
        """The grid of the weights of one layer."""
        return U8_SYMMETRIC if layer in self.unsigned_layers else self.weights

    @property
    def integers_between_layers(self) -> bool:
        """Whether operators between layers run on integers, and clamps inside of them, wherever there are kernels."""
        return self.carries_integers and not self.activations.symmetric

    @property
    def description(self) -> str:
        """The scheme in words, such as ``u8 asymmetric activations, s8 symmetric per-channel weights``."""
        spread = "per-channel" if self.per_channel else "per-tensor"
        return f"{_described(self.activations)} activations, {_described(self.weights)} {spread} weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScheme:
    """The integer types of weights in dynamic quantization.

    Activations are then u8 with a zero point of their own at every run, as DynamicQuantizeLinear makes them.

    Attributes:
        weights: the grid of weights.
        per_channel: whether weights get one scale an output channel, where the kernel can read that.
        largest_pair: as in ``Scheme``.
        target: the preset that it comes from.
        backend: the runtime that it is for, a key of ``BACKENDS``.
    """

    weights: Grid
    per_channel: bool = True
    largest_pair: int | None = None
    target: str = "x86"
    backend: str = "onnxruntime-cpu"

    @property
    def description(self) -> str:
        """The scheme in words, such as ``u8 dynamic activations, s8 symmetric per-channel weights``."""
        spread = "per-channel" if self.per_channel else "per-tensor"
        return f"u8 dynamic activations, {_described(self.weights)} {spread} weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyScheme:
    """The integer types of weights where activations stay float.

    Attributes:
        grid: the integers, and the blocks that share a scale.
        form: how they are written: onnxruntime's MatMulNBits, or DequantizeLinear of opset 21.
        target: the preset that it comes from.
        backend: the runtime that it is for, a key of ``BACKENDS``.
    """

    grid: BlockGrid
    form: WeightFormat = WeightFormat.NBITS
    target: str = "x86"
    backend: str = "onnxruntime-cpu"

    @property
    def description(self) -> str:
        """The scheme in words, such as ``float activations, 4-bit asymmetric weights in blocks of 32``."""
        return f"float activations, {self.grid.description}"


AnyScheme: TypeAlias = Scheme | DynamicScheme | WeightOnlyScheme


def as_dynamic(scheme: Scheme) -> DynamicScheme:
    """Returns what is left of ``scheme`` for activations that are quantized as the model runs."""
    return DynamicScheme(
        weights=scheme.weights,
        per_channel=scheme.per_channel,
        largest_pair=scheme.largest_pair,
        target=scheme.target,
    )


def _described(grid: Grid) -> str:
    if grid.float8 is not None:
        return grid.name
    return f"{grid.name} {'symmetric' if grid.symmetric else 'asymmetric'}"
