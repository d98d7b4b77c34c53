"""Learned rounding, block by block: integers and biases that reproduce the float model's tensors behind each block.

Every block reads what the blocks before it make, which are quantized already. Its integers start as they are and may
move by one step; gradients pass straight through the rounding, and samples that are held back decide what is kept.
Sources: M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization (ICML 2020), for learning which
way to round; I. Hubara et al., Accurate Post Training Quantization With Small Calibration Sets (AdaQuant, ICML 2021),
for the straight-through gradient; Y. Li et al., BRECQ (ICLR 2021), for blocks as what is reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import torch

from qtool.backends.registry import backend_named
from qtool.calib.affine import AffineParams
from qtool.calib.specs import Array, Feed
from qtool.graph.constants import is_constant
from qtool.learn.differentiable_graph import DifferentiableGraph
from qtool.learn.learned_quantization import LearnedQuantization, Rates
from qtool.learn.losses import relative_error
from qtool.learn.tensors import tensor_of
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.qdq.insert_qdq import insert_qdq
from qtool.qdq.quantized_tensors import quantized_tensors
from qtool.schemes import Scheme
from qtool.search.block_reconstruction import Reconstruction, never
from qtool.search.segmented_runner import SegmentedRunner
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.saturation import limited

# A block ends where a single tensor leads on, and after so many layers in any case.
_MOST_LAYERS = 6
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


USUAL = BlockTraining()


def learn_rounding(
    model: ir.Model,
    plan: Plan,
    scheme: Scheme,
    activations: Mapping[str, AffineParams],
    weights: Mapping[str, QuantizedWeight],
    feeds: Sequence[Feed],
    progress: Progress,
    *,
    training: BlockTraining = USUAL,
    device: torch.device | None = None,
    threads: int = 0,
    stop: Callable[[], bool] = never,
) -> Reconstruction:
    """Learns the integers and biases of ``model``, block after block; the arguments are not modified.

    Holds the tensors that cross one cut of the graph, for all of ``feeds``, float and quantized.

    Args:
        model: the prepared float model.
        plan: what is quantized in it.
        scheme: which integers tensors become, and for which runtime.
        activations: final quantization parameters by source.
        weights: the integers to start from, by weight.
        feeds: some dozens of samples, in batches; every fourth is held back.
        progress: receives the steps.
        training: how long each block is trained.
        device: where to compute.
        threads: threads inside an operator; 0 is one per core.
        stop: called before each block; True ends with the blocks done so far.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a part of the graph.
    """
    quantized = model.clone()
    insert_qdq(quantized, plan, activations, weights)
    backend_named(scheme.backend).finish(quantized, scheme)
    cuts = block_cuts(model, plan)
    targets = SegmentedRunner(model, cuts, feeds, threads=threads)
    given = SegmentedRunner(quantized, cuts, feeds, threads=threads, level="basic")
    blocks = _blocks(quantized, cuts)
    learned: dict[str, Array] = {}
    with progress.task("learning to round", len(blocks)) as advance:
        for block in blocks:
            if stop():
                break
            inputs, wanted = given.held, _wanted(targets, block, is_last=block is blocks[-1])
            trainer = _BlockTrainer(quantized, block, training, device or torch.device("cpu"))
            learned |= trainer.train(inputs, wanted)
            given.advance()
            advance(1)
    return _reconstruction(quantized, plan, weights, learned)


def block_cuts(model: ir.Model, plan: Plan) -> list[str]:
    """Returns the names of the nodes that begin a block, in graph order, the first one aside."""
    nodes = list(model.graph)
    position = {node: place for place, node in enumerate(nodes)}
    crossing = [0] * (len(nodes) + 1)
    for node in nodes:
        for value in node.outputs:
            places = [position[use.node] for use in value.uses() if use.node in position]
            end = len(nodes) if value.is_graph_output() else max(places, default=position[node])
            for place in range(position[node] + 1, end + 1):
                crossing[place] += not is_constant(value)
    cuts, layers = list[str](), 0
    for place, node in enumerate(nodes):
        if node.name not in plan.integer_nodes or not any(is_constant(value) for value in node.inputs):
            continue
        if layers and (crossing[place] == 1 or layers >= _MOST_LAYERS):
            cuts.append(node.name or "")
            layers = 0
        layers += 1
    return cuts


def _wanted(targets: SegmentedRunner, block: Sequence[ir.Node], *, is_last: bool) -> list[Feed]:
    """Returns what the float model has behind a block, by batch, and goes there."""
    if is_last:
        with targets.rest() as session:
            return [session.run({spec.name: batch[spec.name] for spec in session.inputs}) for batch in targets.held]
    targets.advance()
    made = {output.name for node in block for output in node.outputs}
    return [{name: array for name, array in batch.items() if name in made} for batch in targets.held]


def _blocks(model: ir.Model, cuts: Sequence[str]) -> list[list[ir.Node]]:
    """Returns the nodes between the cuts."""
    wanted, blocks = set(cuts), [list[ir.Node]()]
    for node in model.graph:
        if node.name in wanted:
            blocks.append([])
        blocks[-1].append(node)
    return blocks


class _BlockTrainer:
    """Trains the constants that one block reads."""

    def __init__(
        self, model: ir.Model, block: Sequence[ir.Node], training: BlockTraining, device: torch.device
    ) -> None:
        self._training = training
        self._device = device
        self._model = model
        self._nodes = [*_constants_of(block), *block]
        self._learned = LearnedQuantization(model, nodes=self._nodes, device=device)

    def train(self, inputs: Sequence[Feed], wanted: Sequence[Feed]) -> dict[str, Array]:
        """Stores what is learned in the graph where it helps, and returns the biases, float, by their name there."""
        names = [name for name, array in wanted[0].items() if array.dtype.kind == "f"] if wanted else []
        if not names or not self._learned.learns_integers or len(inputs) < 2:
            return {}
        graph = DifferentiableGraph(self._model, nodes=self._nodes, device=self._device)
        every = 4 if len(inputs) >= 4 else len(inputs)
        seen = [number for number in range(len(inputs)) if number % every != every - 1]
        aside = [number for number in range(len(inputs)) if number % every == every - 1]

        def loss(number: int) -> torch.Tensor:
            feed = {name: tensor_of(array, self._device) for name, array in inputs[number].items()}
            found = graph.run(feed, names, self._learned.values())
            return torch.stack(
                [relative_error(found[name], tensor_of(wanted[number][name], self._device)) for name in names]
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


def _reconstruction(
    quantized: ir.Model, plan: Plan, given: Mapping[str, QuantizedWeight], biases: Mapping[str, Array]
) -> Reconstruction:
    """Reads off the graph what was learned."""
    stored = quantized_tensors(quantized)
    weights = {}
    for name, weight in given.items():
        integers = stored[name].stored() if name in stored else None
        if integers is None or integers.shape != weight.integers.shape or (integers == weight.integers).all():
            continue
        changed = replace(weight, integers=integers.astype(weight.integers.dtype))
        planned = plan.weights[name]
        if planned.largest_pair is not None and planned.orders:
            changed = limited(changed, planned.orders, planned.largest_pair)
        weights[name] = changed
    nodes = {node.name: node for node in quantized.graph}
    by_layer = {}
    for layer in plan.biases:
        value = nodes[layer].inputs[2] if layer in nodes else None
        learned = None if value is None else biases.get(value.name or "")
        if learned is not None:
            by_layer[layer] = learned.reshape(-1).astype(np.float32)
    return Reconstruction(weights=weights, biases=by_layer, fits={})
