"""Trains the integers and biases of one block to give what the float model has behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from qtool.calib.specs import Array, Feed
from qtool.graph.constants import is_constant
from qtool.learn.differentiable_graph import DifferentiableGraph
from qtool.learn.learned_quantization import LearnedQuantization, Rates
from qtool.learn.losses import relative_error
from qtool.learn.tensors import tensor_of

_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTraining:
    """How long each block is trained.

    Attributes:
        steps: batches to learn from.
        check_every: steps between two evaluations.
        patience: evaluations without a gain after which it ends.
        reach: by how many steps an integer may move.
        rates: of the first step.
    """

    steps: int = 160
    check_every: int = 20
    patience: int = 3
    reach: float = 1.0
    rates: Rates = field(default_factory=lambda: Rates(steps=0.02, scales=0.0, biases=1e-3, floats=0.0))


class BlockTrainer:
    """Trains the constants that one block reads."""

    def __init__(
        self,
        model: ir.Model,
        block: Sequence[ir.Node],
        training: BlockTraining,
        device: torch.device,
        *,
        grids: Mapping[str, tuple[int, int]],
    ) -> None:
        """Reads the constants.

        Args:
            model: the quantized graph; ``train`` changes constants in it.
            block: its nodes, in order.
            training: how long.
            device: where to compute.
            grids: the lowest and the highest integer of weights, by name.
        """
        self._training = training
        self._device = device
        self._model = model
        self._nodes = [*_constants_of(block), *block]
        self._learned = LearnedQuantization(model, nodes=self._nodes, grids=grids, device=device)

    def train(
        self, inputs: Sequence[Feed], wanted: Sequence[Feed], masks: Sequence[npt.NDArray[np.bool_] | None]
    ) -> dict[str, Array]:
        """Stores what is learned in the graph where it helps, and returns the biases, float, by their name there.

        Args:
            inputs: what the block reads, by batch.
            wanted: what the float model has behind it.
            masks: which tokens are no padding, (samples, steps); None where there is none.
        """
        names = [name for name, array in wanted[0].items() if array.dtype.kind == "f"] if wanted else []
        read = _dequantized(self._nodes, names)
        if not names or not self._learned.learns_integers or len(inputs) < 2:
            return {}
        graph = DifferentiableGraph(self._model, nodes=self._nodes, device=self._device)
        every = 4 if len(inputs) >= 4 else len(inputs)
        seen = [number for number in range(len(inputs)) if number % every != every - 1]
        aside = [number for number in range(len(inputs)) if number % every == every - 1]

        def loss(number: int) -> torch.Tensor:
            feed = {name: tensor_of(array, self._device) for name, array in inputs[number].items()}
            found = graph.run(feed, list(read.values()), self._learned.values())
            return torch.stack(
                [
                    relative_error(
                        _tokens(found[read[name]], masks[number]),
                        _tokens(tensor_of(wanted[number][name], self._device), masks[number]),
                    )
                    for name in names
                ]
            ).sum()

        @torch.no_grad()
        def judged() -> float:
            return float(torch.stack([loss(number) for number in aside]).mean())

        start = best = judged()
        kept, at = self._learned.state(), 0
        optimizer = torch.optim.Adam(self._learned.groups(self._training.rates))
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._training.steps)
        draws = np.random.default_rng(_SEED)
        for step in range(1, self._training.steps + 1):
            total = loss(seen[int(draws.integers(len(seen)))])
            if not total.requires_grad:
                break  # nothing that is learned reaches the tensors behind the block
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            falling.step()
            self._learned.limit(self._training.reach)
            if step % self._training.check_every:
                continue
            found = judged()
            if found < best:
                best, kept, at = found, self._learned.state(), step
            elif step - at >= self._training.patience * self._training.check_every:
                break
        graph.close()
        if not best < start:
            return {}
        self._learned.restore(kept)
        self._learned.store(self._model)
        return self._learned.biases()


def _tokens(tensor: torch.Tensor, mask: npt.NDArray[np.bool_] | None) -> torch.Tensor:
    """Returns the tokens of ``tensor``, (samples, steps, ...), that ``mask`` keeps; all of any other tensor."""
    if mask is None or tensor.shape[:2] != mask.shape:
        return tensor
    return tensor[torch.from_numpy(mask).to(tensor.device)]


def _dequantized(nodes: Sequence[ir.Node], names: Sequence[str]) -> dict[str, str]:
    """Returns what the nodes after a block read of each tensor: it dequantized, where it is quantized here."""
    found = {name: name for name in names}
    for node in nodes:
        value = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if value is not None and value.name in found:
            for use in node.outputs[0].uses():
                found[value.name] = use.node.outputs[0].name or ""
    return found


def _constants_of(block: Sequence[ir.Node]) -> list[ir.Node]:
    """Returns the nodes outside of a block that make constants which it reads."""
    own, found = set(block), dict[ir.Node, None]()
    for node in block:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in own and _makes_constant(producer):
                found[producer] = None
    return list(found)


def _makes_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" or (
        node.op_type == "DequantizeLinear" and all(is_constant(value) for value in node.inputs)
    )
