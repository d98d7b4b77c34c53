"""The decisions that lead from a float graph to a quantized one, all made before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from qtool.calib.granularity import Granularity
from qtool.calib.grid import Grid

if TYPE_CHECKING:
    from qtool.weights.blocks.grid import BlockGrid
    from qtool.weights.saturation import KernelOrder

NOTHING_UNFIT: Mapping[str, str] = MappingProxyType({})
NOTHING_KEPT: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPlan:
    """Quantizes a tensor that is computed at run time.

    Attributes:
        tensor: its name.
        grid: the integers it becomes.
        source: the tensor whose statistics and parameters it shares; itself, unless operators that only move values
            around stand between the two.
        readers: names of the nodes that read its dequantized form; all others keep reading the float tensor.
            None when every reader does, the graph's output included.
    """

    tensor: str
    grid: Grid
    source: str
    readers: frozenset[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """Stores a constant as integers.

    Attributes:
        tensor: its name.
        grid: the integers it becomes.
        granularity: one scale, or one per channel.
        nodes: names of the nodes that read it.
        largest_pair: what two neighbouring integers of one sign may add up to in a kernel's sum; None for everything.
        orders: in which orders the kernels of its layers sum up its products; empty where that makes no difference.
    """

    tensor: str
    grid: Grid
    granularity: Granularity
    nodes: tuple[str, ...]
    largest_pair: int | None = None
    orders: tuple[KernelOrder, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasPlan:
    """Stores a bias as int32 on the scale of its node's products: scale of the input times scale of the weight.

    Attributes:
        tensor: its name.
        node: the node that adds it.
        activation: the node's quantized input.
        weight: the node's quantized weight.
    """

    tensor: str
    node: str
    activation: str
    weight: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Explains why a node stays float.

    Attributes:
        node: its name.
        operator: its type.
        reason: as text.
    """

    node: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentPlan:
    """Stores the weights of an LSTM as integers, for each direction a matrix of (inputs, 4 · hidden).

    Attributes:
        inputs: the weight that multiplies the inputs.
        states: the one that multiplies the hidden states.
    """

    inputs: WeightPlan
    states: WeightPlan


NOTHING_RECURRENT: Mapping[str, RecurrentPlan] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicPlan:
    """The layers that quantize their activations as they run.

    Attributes:
        weights: those of products, by tensor name, in graph order.
        integer_nodes: operator type by name of the layers, in graph order.
        skipped: layers that stay as they are, with the reason why.
        recurrent: the weights of LSTM, by node name, in graph order.
    """

    weights: Mapping[str, WeightPlan]
    integer_nodes: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    recurrent: Mapping[str, RecurrentPlan] = field(default_factory=lambda: NOTHING_RECURRENT)

    @property
    def stored(self) -> Mapping[str, WeightPlan]:
        """Every weight that becomes integers, by tensor name."""
        parts = (part for layer in self.recurrent.values() for part in (layer.inputs, layer.states))
        return {**self.weights, **{part.tensor: part for part in parts}}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """Stores a weight matrix as integers in blocks of its inputs.

    Attributes:
        tensor: its name.
        grid: the integers it becomes, and the blocks.
        nodes: names of the layers that multiply with it, all in the same orientation.
    """

    tensor: str
    grid: BlockGrid
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyPlan:
    """The layers whose weights alone are integers.

    Attributes:
        weights: by tensor name, in graph order.
        layers: operator type by name of the layers, in graph order.
        skipped: layers that stay as they are, with the reason why.
    """

    weights: Mapping[str, BlockPlan]
    layers: Mapping[str, str]
    skipped: tuple[Skipped, ...]


NOTHING_DYNAMIC = DynamicPlan(weights=MappingProxyType({}), integer_nodes=MappingProxyType({}), skipped=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that will be quantized, and everything that will not.

    Attributes:
        activations: by tensor name, in graph order.
        weights: by tensor name, in graph order.
        biases: by node name, in graph order.
        integer_nodes: operator type by name of the nodes that are to run on integers.
        skipped: nodes that could have run on integers, with the reason why they do not.
        lowest: by name of tensors that gates read, the value below which all are as good as it.
        channel_axes: by name of the tensors that layers read, the axis of the channels that weights multiply.
        dynamic: layers that quantize their activations as they run; none of the above is about them.
    """

    activations: Mapping[str, ActivationPlan]
    weights: Mapping[str, WeightPlan]
    biases: Mapping[str, BiasPlan]
    integer_nodes: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    channel_axes: Mapping[str, int]
    lowest: Mapping[str, float] = field(default_factory=dict)
    dynamic: DynamicPlan = NOTHING_DYNAMIC

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose statistics the plan needs, in graph order."""
        sources = (activation.source for activation in self.activations.values())
        return tuple(dict.fromkeys([*sources, *self.channel_axes]))
