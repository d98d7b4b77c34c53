"""The numbers of a QDQ graph that are learned: stored integers, scales, biases and float weights.

Integers are learned in steps: a float whose nearest integer is what is stored, so that one rate fits every layer. A
scale is learned as the logarithm of its change, a bias and a float weight as a change in units of its own spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.calib.specs import Array
from qtool.graph.constants import constant_array
from qtool.learn.learned_blocks import LearnedBlocks, learned_blocks
from qtool.learn.operators.quantization import straight_through
from qtool.qdq.quantized_tensors import QuantizedTensor, quantized_tensors

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"})
_BIAS_OF_PACKED = 5
_PRODUCTS = frozenset({"MatMul", "MatMulNBits"})
_NORMALIZATIONS = frozenset({"LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How far one step of Adam moves each kind of number.

    Attributes:
        steps: stored integers, in steps.
        scales: scales, as a share of themselves.
        biases: biases, in units of their spread.
        floats: weights that stay float, in units of their spread.
    """

    steps: float = 0.02
    scales: float = 2e-4
    biases: float = 1e-3
    floats: float = 2e-4

    def times(self, factor: float) -> Rates:
        """Returns all of them times ``factor``."""
        return Rates(
            steps=self.steps * factor,
            scales=self.scales * factor,
            biases=self.biases * factor,
            floats=self.floats * factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatWeight:
    """A float weight to learn, whose nearest integers are stored.

    Attributes:
        array: its values.
        low: the lowest integer in use.
        high: the highest integer in use.
    """

    array: Array
    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A constant of integers behind DequantizeLinear."""

    tensor: QuantizedTensor
    low: int
    high: int
    start: torch.Tensor
    learned: torch.nn.Parameter
    scale: str | None

    def steps(self, scales: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the integers before they are rounded; a float weight is learned where it has a scale here."""
        if self.scale is None:
            return self.learned
        return self.learned / _wide(scales[self.scale], self.tensor.axis, self.learned.ndim)


@dataclass(frozen=True, slots=True)
class _Changed:
    """A float constant, or a dequantized bias, that changes in units of its spread."""

    start: torch.Tensor
    unit: torch.Tensor
    change: torch.nn.Parameter

    def value(self) -> torch.Tensor:
        return self.start + self.unit * self.change


@dataclass(slots=True)
class _Kinds:
    steps: dict[str, _Stored] = field(default_factory=dict)
    blocks: dict[str, LearnedBlocks] = field(default_factory=dict)
    scales: dict[str, _Changed] = field(default_factory=dict)
    biases: dict[str, _Changed] = field(default_factory=dict)
    offsets: dict[str, _Changed] = field(default_factory=dict)
    floats: dict[str, _Changed] = field(default_factory=dict)


class LearnedQuantization:
    """Holds what is learned of one QDQ graph, and writes it back."""

    def __init__(
        self,
        model: ir.Model,
        *,
        nodes: Iterable[ir.Node] | None = None,
        weights: Mapping[str, FloatWeight] | None = None,
        grids: Mapping[str, tuple[int, int]] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Reads the graph, which is not modified; names of its values stay what they are.

        Args:
            model: a QDQ graph.
            nodes: learn only what these read; everything by default.
            weights: floats to learn in place of integers, by the weight's name in the float model; their scales begin
                at those of the graph.
            grids: the lowest and the highest integer of weights, by the same name; those of their type by default.
            device: where to hold it.
        """
        self._weights = weights or {}
        self._grids = grids or {}
        self._device = device or torch.device("cpu")
        self._kinds = _Kinds()
        readers = list(model.graph if nodes is None else nodes)
        own = set(readers)
        for tensor in quantized_tensors(model).values():
            if tensor.dequantized.producer() in own:
                self._read(tensor)
        self._kinds.blocks |= learned_blocks(readers, self._device)
        packed = {name for blocks in self._kinds.blocks.values() for name in blocks.nodes}
        for node in readers:
            if node.name in packed:
                self._learn_scale(node.inputs[2])
                if len(node.inputs) > _BIAS_OF_PACKED:
                    self._learn_floats(node.inputs[_BIAS_OF_PACKED], self._kinds.floats)
            elif node.op_type == "QuantizeLinear":
                self._learn_scale(node.inputs[1])
            elif node.op_type in _LAYERS | _NORMALIZATIONS:
                for value in node.inputs[1:]:
                    self._learn_floats(value, self._kinds.floats)
            elif node.op_type == "Add" and any(_is_product(value) for value in node.inputs):
                for value in node.inputs:
                    self._learn_floats(value, self._kinds.offsets)

    def groups(self, rates: Rates) -> list[dict[str, Any]]:
        """Returns the groups of parameters, as an optimizer takes them."""
        kinds = self._kinds
        return [
            {"params": [stored.learned for stored in kinds.steps.values()], "lr": rates.steps},
            {"params": [stored.learned for stored in kinds.blocks.values()], "lr": rates.steps},
            {"params": [scale.change for scale in kinds.scales.values()], "lr": rates.scales},
            {"params": [bias.change for bias in (kinds.biases | kinds.offsets).values()], "lr": rates.biases},
            {"params": [value.change for value in kinds.floats.values()], "lr": rates.floats},
        ]

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yields everything that is learned."""
        for group in self.groups(Rates()):
            yield from group["params"]

    @property
    def learns_integers(self) -> bool:
        """Whether there are stored integers."""
        return bool(self._kinds.steps or self._kinds.blocks)

    def state(self) -> list[torch.Tensor]:
        """Returns a copy of what is learned so far."""
        return [parameter.detach().clone() for parameter in self.parameters()]

    @torch.no_grad()
    def restore(self, state: Sequence[torch.Tensor]) -> None:
        """Goes back to what ``state`` returned."""
        for parameter, value in zip(self.parameters(), state, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def limit(self, reach: float) -> None:
        """Keeps every integer within ``reach`` steps of where it started."""
        for item in self._kinds.steps.values():
            item.learned.clamp_(item.start - reach, item.start + reach)

    @torch.no_grad()
    def biases(self) -> dict[str, Array]:
        """Returns the learned biases, float32, by the name of what their layer, or the Add behind it, reads."""
        kinds = self._kinds
        return {name: item.value().cpu().numpy() for name, item in (kinds.biases | kinds.offsets).items()}

    def values(self) -> dict[str, torch.Tensor]:
        """Returns what stands in the place of the graph's own values, by name, with gradients."""
        kinds = self._kinds
        found = {name: item.start * torch.exp(item.change) for name, item in kinds.scales.items()}
        found |= {
            name: straight_through(item.steps(found)).clamp(item.low, item.high) for name, item in kinds.steps.items()
        }
        found |= {name: item.value() for name, item in kinds.blocks.items()}
        rest = kinds.biases | kinds.offsets | kinds.floats
        return found | {name: item.value() for name, item in rest.items()}

    @torch.no_grad()
    def store(self, model: ir.Model) -> None:
        """Writes everything into ``model``, a clone of the graph that was read; biases follow the new scales."""
        values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
        scales = {name: scale.start * torch.exp(scale.change) for name, scale in self._kinds.scales.items()}
        for packed in self._kinds.blocks.values():
            packed.store(model, scales)
        for name, learned in scales.items():
            _store(values[name], learned)
        for name, item in self._kinds.steps.items():
            _store(values[name], torch.round(item.steps(scales)).clamp(item.low, item.high))
        for name, value in (self._kinds.offsets | self._kinds.floats).items():
            _store(values[name], value.value())
        for name, bias in self._kinds.biases.items():
            _store_bias(values[name], bias.value())

    def _read(self, tensor: QuantizedTensor) -> None:
        integers, name = tensor.stored(), tensor.value.name
        if integers is None or name is None:
            return
        if tensor.role == "bias" or integers.dtype == np.int32:
            floats = tensor.floats()
            if floats is not None and tensor.dequantized.name is not None:
                self._kinds.biases[tensor.dequantized.name] = self._changed(floats)
            return
        low, high = tensor.lowest, tensor.highest
        if low < 0 and integers.astype(np.int32).min() > low:
            low = -high  # a symmetric grid has one integer less
        producer = tensor.dequantized.producer()
        scale = None if producer is None else producer.inputs[1]
        self._learn_scale(scale)
        weight = self._weights.get(tensor.tensor)
        if weight is not None:
            low, high = weight.low, weight.high
        start = torch.from_numpy(np.array(integers if weight is None else weight.array, np.float32)).to(self._device)
        low, high = self._grids.get(tensor.tensor, (low, high))
        self._kinds.steps[name] = _Stored(
            tensor=tensor,
            low=low,
            high=high,
            start=start,
            learned=torch.nn.Parameter(start.clone()),
            scale=None if weight is None or scale is None else scale.name,
        )

    def _learn_scale(self, value: ir.Value | None) -> None:
        array = constant_array(value)
        if value is None or value.name is None or array is None or value.name in self._kinds.scales:
            return
        start = torch.from_numpy(np.array(array, np.float32)).to(self._device)
        change = torch.nn.Parameter(torch.zeros_like(start))
        self._kinds.scales[value.name] = _Changed(start, torch.ones_like(start), change)

    def _learn_floats(self, value: ir.Value | None, kind: dict[str, _Changed]) -> None:
        array = constant_array(value)
        if value is None or value.name is None or array is None or array.dtype != np.float32 or not array.ndim:
            return
        if kind is not self._kinds.offsets or array.size == array.shape[-1]:
            kind[value.name] = self._changed(array)

    def _changed(self, array: np.ndarray[Any, Any]) -> _Changed:
        start = torch.from_numpy(np.array(array, np.float32)).to(self._device)
        unit = start.square().mean().sqrt().clamp(min=1e-6)
        return _Changed(start, unit, torch.nn.Parameter(torch.zeros_like(start)))


def _is_product(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type in _PRODUCTS


def _wide(scale: torch.Tensor, axis: int | None, rank: int) -> torch.Tensor:
    if scale.numel() == 1 or axis is None:
        return scale.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)


def _store(value: ir.Value, learned: torch.Tensor) -> None:
    old = value.const_value
    if old is None:
        raise AssertionError("what is learned was a constant")
    array = learned.cpu().numpy().astype(old.numpy().dtype).reshape(old.numpy().shape)
    value.const_value = ir.tensor(array, name=value.name)


def _store_bias(dequantized: ir.Value, learned: torch.Tensor) -> None:
    """Stores a bias as integers on the scale of its layer's products, which may have changed."""
    dequantize = dequantized.producer()
    if dequantize is None:
        raise AssertionError("a stored bias is dequantized")
    stored, scale = dequantize.inputs[0], _product_scale(dequantized)
    own = dequantize.inputs[1]
    if stored is None or own is None or stored.const_value is None or own.const_value is None:
        raise AssertionError("a stored bias has a scale")
    old = own.const_value.numpy()
    if scale is not None:
        scale = np.broadcast_to(scale, old.shape) if scale.size == 1 else scale.reshape(old.shape)
        own.const_value = ir.tensor(np.array(scale, np.float32), name=own.name)
    else:
        scale = old
    limit = 2.0**31 - 1
    integers = np.rint(learned.cpu().numpy().astype(np.float64) / scale.astype(np.float64))
    stored.const_value = ir.tensor(np.clip(integers, -limit, limit).astype(np.int32), name=stored.name)


def _product_scale(bias: ir.Value) -> np.ndarray[Any, Any] | None:
    """Returns the scale of the input times that of the weight, of the layer that adds the bias."""
    for use in bias.uses():
        first, second = (_scale_of(value) for value in use.node.inputs[:2])
        if use.node.op_type in _LAYERS and first is not None and second is not None:
            return np.asarray(first * second, np.float32)
    return None


def _scale_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return constant_array(producer.inputs[1])
