"""Cross-layer equalization: scales channels of activations so that one scale per tensor loses the least.

Channels with a smaller range than the widest one use only a part of the tensor's grid. Scaled up, they lose less, but
the weights that read them shrink, and share their scale with those of the other channels. Source of the rewriting:
M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019), section 4.1. That
paper equalizes the ranges of weights; here each output of a layer has its own scale, and factors are chosen by the
noise that rounding activations and weights causes at the outputs of the reading layers; a step D adds D^2 / 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.calib.granularity import PerTensor
from qtool.calib.grid import Grid
from qtool.plan import Plan
from qtool.weights.channel_statistics import ChannelStatistics
from qtool.weights.scaling_regions import ScalingRegion, layer_matrix, stored_weight

Floats = npt.NDArray[np.float64]

# Bounds the factors of channels that are almost always zero.
_LARGEST_FACTOR = 64.0
# A smaller predicted gain is within the error of the prediction.
_LEAST_GAIN = 0.1
# Fractions of the widest channel's range that all channels are scaled towards, and how far they move.
_REACHES = (1.0, 0.7, 0.5, 0.35, 0.25)
_EXPONENTS = (0.25, 0.5, 0.75, 1.0)
_ROUNDS = 6


def watched_tensors(regions: Iterable[ScalingRegion], plan: Plan) -> tuple[str, ...]:
    """Returns the tensors whose channel statistics are needed, each once."""
    names = [name for region in regions for name in region.axes if name in plan.activations or name in region.bounds]
    read = [name for region in regions for name in region.readers.values()]
    return tuple(dict.fromkeys([*names, *read]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A quantized tensor of a region: the figures that determine its step."""

    lows: Floats
    highs: Floats
    headroom: Floats
    grid: Grid

    def step(self, factors: Floats) -> float:
        low, high = float((self.lows * factors).min()), float((self.highs * factors).max())
        if self.grid.symmetric:
            return 2.0 * max(-low, high) / (self.grid.high - self.grid.low)
        return (high - low) / (self.grid.high - self.grid.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """An integer layer that reads a region.

    Attributes:
        sources: the tensors whose rounding errors reach it.
        powers: mean squares of its input, (channels,).
        filled: fraction of its input's values that are not zero, (channels,).
        gains: sum of squared weights that read a channel, weighted by the importance of the output, (channels,).
        largest: largest weight, (groups, outputs of a group, inputs of a group).
        kernel: weights from an input to an output.
        importance: how much noise in its outputs matters, (groups, outputs of a group).
        shared_scale: whether all outputs share one scale.
    """

    sources: tuple[_Tensor, ...]
    powers: Floats
    filled: Floats
    gains: Floats
    largest: Floats
    kernel: int
    importance: Floats
    steps: int
    shared_scale: bool

    def activation_power(self, factors: Floats) -> Floats:
        """Returns the mean squared rounding error of each channel of its input, scaled."""
        noise = sum(source.step(factors) ** 2 for source in self.sources) / 12.0
        return np.minimum(noise * self.filled, factors**2 * self.powers)

    def weight_power(self, factors: Floats) -> Floats:
        """Returns, for each channel, the squared rounding errors of the weights that read it, summed by importance."""
        groups, _, inputs = self.largest.shape
        reach = (self.largest / factors.reshape(groups, 1, inputs)).max(axis=2)
        if self.shared_scale:
            reach = np.full_like(reach, reach.max())
        errors = self.kernel * (2.0 * reach / self.steps) ** 2 / 12.0
        return np.repeat((errors * self.importance).sum(axis=1), inputs)

    def noise(self, factors: Floats) -> float:
        """Returns the noise at its outputs, weighted by importance."""
        activations = self.activation_power(factors) * self.gains / factors**2
        weights = self.weight_power(factors) * factors**2 * self.powers
        return float((activations + weights).sum())


def equalizing_factors(
    model: ir.Model,
    plan: Plan,
    region: ScalingRegion,
    seen: Mapping[str, ChannelStatistics],
    importance: Mapping[str, Floats],
) -> Floats | None:
    """Returns s, float64, (channels,), by which a region is multiplied; None where that gains nothing.

    Args:
        model: as ``prepare`` leaves it.
        plan: what is quantized.
        region: the tensors.
        seen: statistics of at least its ``watched_tensors``.
        importance: by layer, the importance of its outputs, see ``output_importance``.
    """
    watched = [seen.get(name) for name in watched_tensors([region], plan)]
    if not all(channels is not None and channels.finite for channels in watched) or _shares_scales(plan, region):
        return None
    readers = _readers(model, plan, region, seen, importance)
    tensors = {id(tensor): tensor for reader in readers for tensor in reader.sources}.values()
    if not tensors:
        return None
    caps, fixed = np.full(region.channels, _LARGEST_FACTOR), np.zeros(region.channels, bool)
    for name, bound in region.bounds.items():
        reach = seen[name].highs
        caps = np.minimum(caps, _lifted(bound / np.maximum(reach, bound / _LARGEST_FACTOR), seen[name].headroom))
        fixed |= reach >= bound * (1 - 1e-4)
    ones = np.ones(region.channels)
    before = sum(reader.noise(ones) for reader in readers)
    best, least = None, (1.0 - _LEAST_GAIN) * before
    for candidate in _candidates(readers, list(tensors), caps, fixed):
        noise = sum(reader.noise(candidate) for reader in readers)
        if noise < least:
            best, least = candidate, noise
    return best


def _shares_scales(plan: Plan, region: ScalingRegion) -> bool:
    """Returns whether a layer that produces a region has one scale for all outputs, so that those scaled down lose."""
    producers = set(region.producers)
    weights = (weight for weight in plan.weights.values() if not producers.isdisjoint(weight.nodes))
    return any(isinstance(weight.granularity, PerTensor) for weight in weights)


def _lifted(factors: Floats, headroom: Floats) -> Floats:
    """Returns factors with headroom above the observed range where they enlarge a channel."""
    return np.where(factors > 1.0, np.maximum(factors / headroom, 1.0), factors)


def _candidates(
    readers: Sequence[_Reader], tensors: Sequence[_Tensor], caps: Floats, fixed: npt.NDArray[np.bool_]
) -> Iterable[Floats]:
    """Yields factors to try: towards equal ranges, part of the way, and where both kinds of noise balance."""

    def bounded(factors: Floats, most: Floats) -> Floats:
        kept = np.clip(np.minimum(factors, most), 1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        return np.where(fixed, 1.0, kept)

    reaches = [np.maximum(-tensor.lows, tensor.highs) for tensor in tensors]
    for part in _REACHES:
        limits = [part * reach.max() / np.maximum(reach, reach.max() / _LARGEST_FACTOR**2) for reach in reaches]
        lifted = [_lifted(limit, tensor.headroom) for limit, tensor in zip(limits, tensors, strict=True)]
        most = np.minimum(np.min(lifted, axis=0), caps)
        for exponent in _EXPONENTS:
            yield bounded(most**exponent, caps)
        factors = bounded(np.minimum(most, 1.0), caps)
        for _ in range(_ROUNDS):
            wanted = sum(reader.activation_power(factors) * reader.gains for reader in readers)
            against = sum(reader.weight_power(factors) * reader.powers for reader in readers)
            balance = np.where(against > 0, wanted / np.maximum(against, 1e-300), np.inf) ** 0.25
            factors = bounded(np.minimum(balance, most), caps)
            yield factors


def _readers(
    model: ir.Model,
    plan: Plan,
    region: ScalingRegion,
    seen: Mapping[str, ChannelStatistics],
    importance: Mapping[str, Floats],
) -> list[_Reader]:
    nodes = {node.name: node for node in model.graph if node.name in region.readers}
    tensors = {
        name: _Tensor(
            lows=seen[name].lows,
            highs=seen[name].highs,
            headroom=seen[name].headroom,
            grid=plan.activations[name].grid,
        )
        for name in region.axes
        if name in plan.activations and plan.activations[name].source == name
    }
    sources: dict[str, tuple[_Tensor, ...]] = {}
    for name in region.axes:
        above = [source for parent in region.parents[name] for source in sources.get(parent, ())]
        own = [tensors[name]] if name in tensors else []
        sources[name] = tuple({id(source): source for source in (*above, *own)}.values())
    found = []
    for name, read in region.readers.items():
        node = nodes[name]
        weight = plan.weights.get((node.inputs[1] or node.outputs[0]).name or "")
        if name not in plan.integer_nodes or name not in importance or weight is None or read not in plan.activations:
            continue
        matrix = layer_matrix(node, stored_weight(node)).astype(np.float64)
        weights = importance[name].reshape(matrix.shape[:2])
        gains = np.einsum("goik,go->gi", np.square(matrix), weights).reshape(-1)
        channels = seen[read]
        if sources[read] and gains.any():
            found.append(
                _Reader(
                    sources=sources[read],
                    powers=channels.squares / max(channels.count, 1),
                    filled=channels.others / max(channels.count, 1),
                    gains=gains,
                    largest=np.abs(matrix).max(axis=3),
                    kernel=matrix.shape[3],
                    importance=weights,
                    steps=weight.grid.high - weight.grid.low,
                    shared_scale=isinstance(weight.granularity, PerTensor),
                )
            )
    return found
