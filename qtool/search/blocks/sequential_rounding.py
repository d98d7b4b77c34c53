"""Rounds the layers of a weight-only plan once more, in graph order, each given inputs from rounded layers.

The float model and the quantized one run side by side, up to the same layer, as in ``block_reconstruction``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.graph.constants import add_constant, has_rows_of_outputs
from qtool.graph.unpacked_product import is_unpacked_product
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.qdq.insert_blocks import insert_blocks
from qtool.qdq.remove_blocks import RemoveBlocks
from qtool.search.blocks.rounding import MOST_INPUTS, matrix_of, sole_layers
from qtool.search.blocks.stored_blocks import StoredBlocks
from qtool.search.layer_columns import MOST_POSITIONS, layer_columns
from qtool.search.segmented_runner import SegmentedRunner
from qtool.weights.blocks.choices import WeightFormat
from qtool.weights.blocks.gptaq import gptaq_blocks
from qtool.weights.blocks.quantization import BlockWeight
from qtool.weights.input_hessian import LayerInput, layer_inputs
from qtool.weights.padding import mask_of


def rounded_in_sequence(
    model: ir.Model,
    plan: WeightOnlyPlan,
    weights: Mapping[str, BlockWeight],
    feeds: Iterable[Feed],
    progress: Progress,
    folder: Path,
    *,
    threads: int = 0,
) -> Mapping[str, BlockWeight]:
    """Returns ``weights``, those of layers fitted to what the layers before them have become.

    Holds the tensors that cross one cut of the graph, float and quantized.

    Args:
        model: the prepared float model; not modified.
        plan: what is quantized in it.
        weights: the integers to start from, by name.
        feeds: the calibration batches, of which the first ones are used.
        progress: receives the steps.
        folder: where weights are kept.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a part of the graph.
    """
    layers = layer_inputs(model, sole_layers(plan), shared_weights=True, most_inputs=MOST_INPUTS)
    found = StoredBlocks(folder)
    sequence = _Sequence(model, plan, weights, layers, list(_enough(feeds)), threads)
    with progress.task("fitting layers", len(layers)) as advance:
        for layer in layers:
            found.add(layer.weight, sequence.fitted(layer, weights[layer.weight]))
            sequence.take(layer, found[layer.weight])
            advance(1)
    return {**{name: weight for name, weight in weights.items() if name not in found}, **found}


class _Sequence:
    """Runs the float model and the quantized one side by side."""

    def __init__(
        self,
        model: ir.Model,
        plan: WeightOnlyPlan,
        weights: Mapping[str, BlockWeight],
        layers: Sequence[LayerInput],
        feeds: Sequence[Feed],
        threads: int,
    ) -> None:
        quantized = model.clone()
        visited = {layer.weight for layer in layers}
        others = {name: item for name, item in plan.weights.items() if name not in visited}
        insert_blocks(quantized, replace(plan, weights=others), weights, form=WeightFormat.NBITS, levels={})
        quantized = RemoveBlocks(is_unpacked_product)(quantized).model
        self._model = model
        self._graph = quantized.graph
        self._nodes = {node.name: node for node in quantized.graph}
        self._masks = [mask_of(feed) for feed in feeds]
        self._rounded: ir.Value | None = None
        cuts = [layer.node for layer in layers]
        self._float = SegmentedRunner(model, cuts, feeds, threads=threads)
        self._quantized = SegmentedRunner(quantized, cuts, feeds, threads=threads)

    def fitted(self, layer: LayerInput, rounded: BlockWeight) -> BlockWeight:
        """Advances to ``layer`` and returns its weight, fitted."""
        self._float.advance()
        self._quantized.advance()
        if self._rounded is not None:
            # What has been run is not held.
            self._rounded.const_value = ir.tensor(np.zeros(0, np.float32), name=self._rounded.name)
        source = self._nodes[layer.node].inputs[0]
        if source is None:
            raise AssertionError(f"{layer.node} reads something")
        wanted = layer_columns(layer, [batch[layer.tensor] for batch in self._float.held], self._masks)
        given = layer_columns(layer, [batch[source.name or ""] for batch in self._quantized.held], self._masks)
        sound = np.isfinite(wanted).all(axis=(0, 1)) & np.isfinite(given).all(axis=(0, 1))
        matrix = matrix_of(self._model, layer.weight)
        return gptaq_blocks(layer.weight, matrix, rounded, wanted[:, :, sound], given[:, :, sound])

    def take(self, layer: LayerInput, weight: BlockWeight) -> None:
        """Lets the quantized model compute the layer with ``weight``."""
        node, floats = self._nodes[layer.node], weight.dequantized()
        turned = floats if has_rows_of_outputs(node) else np.ascontiguousarray(floats.T)
        self._rounded = add_constant(self._graph, f"{layer.weight}_rounded", turned)
        node.replace_input_with(1, self._rounded)


def _enough(feeds: Iterable[Feed]) -> Iterable[Feed]:
    """Yields batches until they have as many positions as a layer is fitted to."""
    positions = 0
    for feed in feeds:
        if positions >= MOST_POSITIONS:
            return
        yield feed
        mask = mask_of(feed)
        counts = [int(np.prod(array.shape[:2])) for array in feed.values()]
        positions += max(counts, default=0) if mask is None else int(mask.sum())
