"""Learned rounding, block by block: integers and biases that reproduce the float model's tensors behind each.

Every block reads what the blocks before it make, which are quantized already. Its integers start as they are and may
move by one step; gradients pass straight through the rounding, and samples that are held back decide what is kept.
Sources: M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization (ICML 2020), for learning which
way to round; I. Hubara et al., Accurate Post Training Quantization With Small Calibration Sets (AdaQuant, ICML 2021),
for the straight-through gradient; Y. Li et al., BRECQ (ICLR 2021), for blocks as what is reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch

from qtool.backends.registry import backend_named
from qtool.calib.affine import AffineParams
from qtool.calib.specs import Array, Feed
from qtool.graph.constants import is_constant
from qtool.learn.block_trainer import BlockTrainer, BlockTraining
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.qdq.insert_qdq import insert_qdq
from qtool.qdq.quantized_tensors import quantized_tensors
from qtool.schemes import Scheme
from qtool.search.block_reconstruction import Reconstruction, never
from qtool.search.segmented_runner import SegmentedRunner
from qtool.weights.padding import mask_of
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.saturation import limited

# A block ends where a single tensor leads on, and after so many layers in any case.
_MOST_LAYERS = 6
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

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
    """Learns the integers and biases of ``model`` block after block; the arguments are not modified.

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
    grids = {name: (weight.grid.low, weight.grid.high) for name, weight in plan.weights.items()}
    masks = [mask_of(feed) for feed in feeds]
    learned: dict[str, Array] = {}
    with progress.task("learning to round", len(blocks)) as advance:
        for block in blocks:
            if stop():
                break
            inputs, wanted = given.held, _wanted(targets, block, is_last=block is blocks[-1])
            trainer = BlockTrainer(quantized, block, training, device or torch.device("cpu"), grids=grids)
            learned |= trainer.train(inputs, wanted, masks)
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


def _offsets(layer: ir.Node) -> list[ir.Value | None]:
    """Returns what an Add reads beside the products of ``layer``."""
    uses = list(layer.outputs[0].uses())
    adds = [use for use in uses if use.node.op_type == "Add"] if len(uses) == 1 else []
    return [use.node.inputs[1 - use.idx] for use in adds]


def _reconstruction(
    quantized: ir.Model,
    plan: Plan,
    given: Mapping[str, QuantizedWeight],
    biases: Mapping[str, Array],
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
    by_layer = {}
    for node in quantized.graph:
        if node.name not in plan.integer_nodes or node.op_type not in _LAYERS:
            continue
        places = [value for value in (*node.inputs[2:], *_offsets(node)) if value is not None]
        for value in places:
            learned = biases.get(value.name or "")
            if learned is not None:
                by_layer[node.name or ""] = learned.reshape(-1).astype(np.float32)
    return Reconstruction(weights=weights, biases=by_layer, fits={})
