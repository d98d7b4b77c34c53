"""Packed weights in blocks that are learned: their integers in steps; their scales belong to the graph's others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch

from qtool.learn.operators.quantization import straight_through
from qtool.qdq.packed_integers import is_packed, replace_packed
from qtool.qdq.remove_blocks import block_weight
from qtool.weights.blocks.quantization import BlockWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedBlocks:
    """The integers of the MatMulNBits that read one weight.

    Attributes:
        nodes: their names.
        scales: the name of their scales.
        weight: as it is stored.
        learned: a float, (outputs, inputs), whose nearest integer is what is stored.
    """

    nodes: tuple[str, ...]
    scales: str
    weight: BlockWeight
    learned: torch.nn.Parameter

    def value(self) -> torch.Tensor:
        """Returns the integers as floats, (outputs, inputs), with a gradient."""
        return straight_through(self.learned).clamp(0, self.weight.grid.highest)

    @torch.no_grad()
    def store(self, model: ir.Model, scales: Mapping[str, torch.Tensor]) -> None:
        """Writes integers and scales into ``model``, a clone of the graph that was read."""
        nodes = tuple(node for node in model.graph if node.name in self.nodes)
        integers = torch.round(self.learned).clamp(0, self.weight.grid.highest).cpu().numpy().astype(np.uint8)
        values = scales[self.scales].cpu().numpy().reshape(self.weight.scales.shape)
        replace_packed(nodes, replace(self.weight, integers=integers, scales=values))


def learned_blocks(nodes: Iterable[ir.Node], device: torch.device) -> dict[str, LearnedBlocks]:
    """Returns the weights of every MatMulNBits among ``nodes``, by the name of their stored bytes.

    A table that embeddings read as well is left out: it would have to be dequantized whole in every step.
    """
    found: dict[str, LearnedBlocks] = {}
    for node in nodes:
        stored, weight = node.inputs[1] if len(node.inputs) > 1 else None, None
        if is_packed(node) and node.op_type == "MatMulNBits" and stored is not None and stored.name not in found:
            weight = block_weight(node)
        if stored is None or stored.name is None or weight is None or stored.producer() is not None:
            continue
        readers = tuple(use.node for use in stored.uses())
        scales = node.inputs[2]
        if scales is None or scales.name is None or any(not _reads_alike(reader, node) for reader in readers):
            continue
        start = torch.from_numpy(weight.integers.astype(np.float32)).to(device)
        found[stored.name] = LearnedBlocks(
            nodes=tuple(reader.name or "" for reader in readers),
            scales=scales.name,
            weight=weight,
            learned=torch.nn.Parameter(start),
        )
    return found


def _reads_alike(reader: ir.Node, node: ir.Node) -> bool:
    return is_packed(reader) and reader.op_type == node.op_type and reader.inputs[1:4] == node.inputs[1:4]
